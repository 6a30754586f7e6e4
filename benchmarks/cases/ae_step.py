"""Time of a training step of the autoencoder, at two vocabularies, against one with all logits in memory.

The row is that of the larger vocabulary; both are among the parts.
"""

from dataclasses import replace

from benchmarks.autoencoding import SIZES, made
from benchmarks.harness import Part, Row, compare_times


def run() -> Row:
    """Compare the times of one step."""
    parts = []
    for vocabulary, tokens in SIZES.items():
        training = made(vocabulary)
        training.demand_same()
        found = compare_times(training.our_step, training.plain_step, rounds=5)
        parts.append(Part(f"V = {vocabulary}, {tokens} tokens, ms", found.ours, found.baseline))
        made.cache_clear()
    return replace(found, parts=tuple(parts))
