"""Time of a training step for each token, at longer and longer sequences, against that at 512 tokens.

As many tokens in each step, in fewer and longer sequences. What attention adds grows with the sequence: the parts give
its share of the FLOPs, and each length's time beside that at 512.
"""

import statistics
import time
from dataclasses import replace

from benchmarks.harness import Part, Row, row
from benchmarks.training import Shape, Training

LENGTHS = (512, 1024, 2048, 4096, 8192)
SHAPE = Shape(hidden=256, ffn=704, layers=4, heads=4, vocabulary=4096, sequences=16, tokens=512)
ROUNDS = 5


def attention_share(shape: Shape) -> float:
    """Of the FLOPs of the backbone's layers at P patches: scores and values of the causal half, beside the matrices."""
    patches = shape.tokens // 4
    attention = 2 * 2 * patches / 2 * shape.hidden
    matrices = 2 * (4 * shape.hidden**2 + 3 * shape.hidden * shape.ffn)
    return attention / (attention + matrices)


def milliseconds(training: Training) -> float:
    """Of one step."""
    since = time.perf_counter()
    training.our_step()
    return 1e3 * (time.perf_counter() - since)


def run() -> Row:
    """Step at each length in turns; the row is the longest one's time beside the shortest one's."""
    total = SHAPE.sequences * SHAPE.tokens
    shapes = [replace(SHAPE, tokens=tokens, sequences=total // tokens) for tokens in LENGTHS]
    trainings = [Training(shape) for shape in shapes]
    for training in trainings:
        training.our_step()
    rounds = [[milliseconds(training) for training in trainings] for _ in range(ROUNDS)]
    columns = [[1e3 * value / total for value in column] for column in zip(*rounds, strict=True)]
    medians = [statistics.median(column) for column in columns]
    parts = tuple(
        Part(f"{shape.tokens} tokens, attention {attention_share(shape):.1%} of the layers", median, medians[0])
        for shape, median in zip(shapes, medians, strict=True)
    )
    return replace(row(columns[-1], columns[0], "us/token"), parts=parts)
