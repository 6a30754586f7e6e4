"""Time of the energy score, forward and backward with its noise, against its formula written with all pairs."""

from benchmarks.energy import all_pairs_step, demand_same, our_step
from benchmarks.harness import Row, compare_times


def run() -> Row:
    """Compare the times of one step, the noise independent for each patch."""
    demand_same(shared=1)
    return compare_times(lambda: our_step(shared=1), all_pairs_step, rounds=7)
