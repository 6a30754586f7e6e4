"""Memory that generation at T = 1/2 takes at its peak beyond the model, against the plain algorithm."""

from benchmarks.generating import made
from benchmarks.harness import Row, compare_peaks


def ours() -> None:
    """Continue all prompts."""
    made().ours()


def plain() -> None:
    """The same the published way."""
    made().plain()


def run() -> Row:
    """Compare the peaks."""
    made().decoded()
    return compare_peaks(ours, plain)
