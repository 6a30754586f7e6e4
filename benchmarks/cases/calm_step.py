"""Time of a whole training step of CALM, against one made of plain parts; beside it, what each part of ours takes."""

from dataclasses import replace

from benchmarks.harness import Row, compare_times
from benchmarks.step_profile import shares
from benchmarks.training import BASELINE, made


def run() -> Row:
    """Compare the times of one step at the shape at which the official code was measured."""
    training = made(BASELINE)
    training.demand_same()
    found = compare_times(training.our_step, training.plain_step, rounds=5)
    return replace(found, parts=shares(training, found.ours))
