"""Peak of weights, gradients and optimizer state of a data rank, measured in real runs, against the formula."""

from benchmarks.harness import Row, counted
from benchmarks.memory import beside_the_formula


def run() -> Row:
    """Measure on two ranks."""
    return counted(beside_the_formula(), "MB")
