"""Memory that the energy score takes at its peak, forward and backward with its noise, against all pairs."""

from benchmarks.energy import all_pairs_step, demand_same, our_step
from benchmarks.harness import Row, compare_peaks


def run() -> Row:
    """Compare the peaks of one step."""
    demand_same(shared=1)
    return compare_peaks(our_step, all_pairs_step)
