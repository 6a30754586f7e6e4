"""Memory that a training step of CALM takes at its peak beyond weights and moments, against one of plain parts."""

from benchmarks.harness import Row, compare_peaks
from benchmarks.training import BASELINE, made


def our_step() -> None:
    """One of ours."""
    made(BASELINE).our_step()


def plain_step() -> None:
    """One of the plain ones."""
    made(BASELINE).plain_step()


def run() -> Row:
    """Compare the peaks of one step."""
    made(BASELINE).demand_same()
    return compare_peaks(our_step, plain_step)
