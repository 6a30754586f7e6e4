"""Memory that a training step of the autoencoder takes at its peak beyond weights and moments, against all logits.

The row is that of the larger vocabulary; both are among the parts.
"""

from dataclasses import replace
from functools import partial

from benchmarks.autoencoding import SIZES, step
from benchmarks.harness import Part, Row, compare_peaks


def run() -> Row:
    """Compare the peaks of one step; that both compute the same is checked by the row of times."""
    parts = []
    for vocabulary, tokens in SIZES.items():
        found = compare_peaks(partial(step, vocabulary, True), partial(step, vocabulary, False), rounds=2)
        parts.append(Part(f"V = {vocabulary}, {tokens} tokens, MiB", found.ours, found.baseline))
    return replace(found, parts=tuple(parts))
