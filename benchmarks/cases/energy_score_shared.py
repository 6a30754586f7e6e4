"""Time of the energy score with noise that 256 patches share, against its formula with all pairs and noise for each."""

from benchmarks.energy import SHARED, all_pairs_step, demand_same, our_step
from benchmarks.harness import Row, compare_times


def run() -> Row:
    """Compare the times of one step."""
    demand_same(shared=SHARED)
    return compare_times(lambda: our_step(shared=SHARED), all_pairs_step, rounds=7)
