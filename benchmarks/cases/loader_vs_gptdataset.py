"""Time of a sample of 8,192 tokens from a data set in memory, against megatron-core's `GPTDataset`.

Both give shuffled sequences of whole documents and say which document each token or patch is of: Megatron by positions
that begin again. The part beside the row is `GPTDataset` without that, so that it need not look where documents end.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks import gpt_dataset
from benchmarks.harness import Part, Row, row
from benchmarks.saved import on_disk

TOKENS = 100_000_000
SAMPLES = 500
ROUNDS = 15


def run() -> Row:
    """Read other samples in each round."""
    with on_disk() as folder:
        gpt_dataset.random_data_set(folder / "set", TOKENS)
        dataset = gpt_dataset.ours(folder / "set")
        apart, plain = (gpt_dataset.megatrons(folder / "set", SAMPLES * (ROUNDS + 1), each) for each in (True, False))
        sample: Any = apart[0]
        assert len(sample["tokens"]) == len(dataset.sequence(0).ids_T) == gpt_dataset.SEQ_LENGTH
        assert (sample["position_ids"] == 0).sum() > 1, "documents are kept apart"
        readers = (dataset.sequence, apart.__getitem__, plain.__getitem__)
        rounds = [[_microseconds(read, number) for read in readers] for number in range(ROUNDS + 1)][1:]
    ours, theirs, cheaper = ([each[k] for each in rounds] for k in range(3))
    part = Part("GPTDataset with documents run together", statistics.median(ours), statistics.median(cheaper))
    return replace(row(ours, theirs, "us/sample"), parts=(part,))


def _microseconds(read: Callable[[int], object], number: int) -> float:
    start = time.perf_counter()
    for index in range(number * SAMPLES, (number + 1) * SAMPLES):
        read(index)
    return 1e6 * (time.perf_counter() - start) / SAMPLES
