"""How many samples a step takes, and which rank reads which.

Pure functions of the number of samples consumed: that one integer is the place in the data, valid for every number of
data-parallel ranks and every micro-batch size.
"""

from dataclasses import dataclass

from calm_megatron.config.checks import nearest_multiples
from calm_megatron.config.errors import UserError


def _check_multiple(value: int, unit: int, setting: str, what: str) -> None:
    if value % unit:
        nearest = nearest_multiples(value, unit)
        raise UserError(f"{value} is not a multiple of {what}, {unit}", setting, f"nearest that work: {nearest}")


@dataclass(frozen=True)
class BatchSchedule:
    """Global batch sizes over a run and their division among ranks and micro-batches.

    Ramp-up is Megatron's (`core/num_microbatches_calculator.py`): from `start`, the batch grows by `increment` at equal
    intervals of consumed samples, and is full when `samples` have been consumed.

    Args:
        global_batch_size: sequences of a step, over all ranks.
        rampup_batch_size: (start, increment, samples), or none.
        micro_batch_size: sequences of one forward pass on one rank.
        data_parallel_size: ranks among which the data is divided.

    Raises:
        UserError: the sizes do not divide; the message names the nearest that do.
    """

    global_batch_size: int
    rampup_batch_size: tuple[int, int, int] | None
    micro_batch_size: int
    data_parallel_size: int

    def __post_init__(self) -> None:
        unit = self.micro_batch_size * self.data_parallel_size
        what = f"micro_batch_size x data-parallel ranks ({self.micro_batch_size} x {self.data_parallel_size})"
        _check_multiple(self.global_batch_size, unit, "train.global_batch_size", what)
        if self.rampup_batch_size is None:
            return
        start, increment, _ = self.rampup_batch_size
        setting = "train.rampup_batch_size"
        if start >= self.global_batch_size:
            raise UserError(
                f"the ramp starts at {start}, not below the global batch of {self.global_batch_size}",
                setting,
                "start lower, or leave the ramp out",
            )
        _check_multiple(start, unit, f"{setting}[0] (start)", what)
        _check_multiple(increment, unit, f"{setting}[1] (increment)", what)
        _check_multiple(
            self.global_batch_size - start, increment, f"train.global_batch_size less {setting}[0]", "the increment"
        )

    def batch_size_at(self, consumed_samples: int) -> int:
        """Sequences of the step that begins after `consumed_samples`."""
        if self.rampup_batch_size is None:
            return self.global_batch_size
        start, increment, samples = self.rampup_batch_size
        if consumed_samples > samples:
            return self.global_batch_size
        increments = (self.global_batch_size - start) // increment
        # Integers, where Megatron divides floats: the same steps, without rounding.
        return start + consumed_samples * increments // samples * increment

    def micro_batches(self, consumed_samples: int, data_rank: int) -> list[list[int]]:
        """Sample indices of each micro-batch of `data_rank` in the step that begins after `consumed_samples`.

        The rank takes every `data_parallel_size`-th sample, beginning at `consumed_samples + data_rank`. So where data
        comes in streams, and sample i is of stream i modulo their number, a rank stays with its own.
        """
        size, ranks = self.micro_batch_size, self.data_parallel_size
        own = range(consumed_samples + data_rank, consumed_samples + self.batch_size_at(consumed_samples), ranks)
        return [list(own[first : first + size]) for first in range(0, len(own), size)]
