"""Bytes that a tensor rank sends for the head in a step, shared by samples, against the head's matrices cut."""

from benchmarks import samples
from benchmarks.harness import Row


def run() -> Row:
    """Count a step of each."""
    return samples.traffic(samples.both_ways())
