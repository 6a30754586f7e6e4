"""Memory that the energy score takes at its peak beyond its inputs, forward and backward, against all pairs."""

import functools

from benchmarks.cases import energy_score
from benchmarks.harness import Row, compare_peaks, demand_equal

made = functools.cache(energy_score.inputs)
"""The inputs are made in the first call, so they do not count."""


def our_step() -> None:
    """Forward and backward of ours."""
    energy_score.our_step(made())


def all_pairs_step() -> None:
    """Forward and backward of the formula."""
    energy_score.all_pairs_step(made())


def run() -> Row:
    """Compare the peaks of one step."""
    demand_equal("gradient", energy_score.our_step(made()), energy_score.all_pairs_step(made()))
    return compare_peaks(our_step, all_pairs_step)
