"""Batch sizes and the division of samples among ranks."""

import pytest
from megatron.core.num_microbatches_calculator import RampupBatchsizeNumMicroBatchesCalculator

from calm_megatron.config.errors import UserError
from calm_megatron.data.sampler import BatchSchedule


def consumed_by(schedule: BatchSchedule, steps: int, first: int = 0) -> list[list[int]]:
    """Samples of each step, over all ranks."""
    taken, consumed = [], first
    for _ in range(steps):
        ranks = range(schedule.data_parallel_size)
        taken.append([index for rank in ranks for batch in schedule.micro_batches(consumed, rank) for index in batch])
        consumed += schedule.batch_size_at(consumed)
    return taken


def test_steps_take_the_same_samples_in_every_layout() -> None:
    for ramp in (None, (12, 12, 100)):
        layouts = [(1, 1), (4, 1), (1, 3), (2, 6), (12, 1)]
        steps = [
            [sorted(step) for step in consumed_by(BatchSchedule(48, ramp, size, ranks), 12)] for size, ranks in layouts
        ]
        assert all(other == steps[0] for other in steps)
        taken = [index for step in steps[0] for index in step]
        assert taken == list(range(len(taken)))


def test_ranks_take_turns() -> None:
    schedule = BatchSchedule(8, None, 2, 2)
    assert schedule.micro_batches(100, 0) == [[100, 102], [104, 106]]
    assert schedule.micro_batches(100, 1) == [[101, 103], [105, 107]]


def test_ramp_is_megatrons() -> None:
    schedule = BatchSchedule(64, (16, 8, 600), 4, 2)
    megatron = RampupBatchsizeNumMicroBatchesCalculator(64, 4, 2, False, 0, 16, 8, 600)
    sizes = set()
    for consumed in range(0, 800):
        megatron.update(consumed, consistency_check=True)
        assert schedule.batch_size_at(consumed) == megatron.current_running_global_batch_size
        assert len(schedule.micro_batches(consumed, 1)) == megatron.num_micro_batches
        sizes.add(schedule.batch_size_at(consumed))
    assert sizes == {16, 24, 32, 40, 48, 56, 64}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, None, 4, 1), r"10 is not a multiple of micro_batch_size.*\(4 x 1\)[\s\S]*nearest that work: 8 or 12"),
        ((2, None, 4, 1), r"nearest that work: 4$"),
        ((16, (6, 4, 100), 4, 1), r"6 is not a multiple[\s\S]*rampup_batch_size\[0\][\s\S]*4 or 8"),
        ((16, (4, 6, 100), 4, 1), r"6 is not a multiple[\s\S]*rampup_batch_size\[1\]"),
        ((16, (4, 8, 100), 4, 1), r"12 is not a multiple of the increment, 8"),
        ((16, (16, 4, 100), 4, 1), r"the ramp starts at 16, not below"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BatchSchedule(*arguments)  # type: ignore[arg-type]
