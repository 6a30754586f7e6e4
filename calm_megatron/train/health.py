"""Is the run still well: which steps are left out, what is told of them, and when the run is ended.

A step that is left out changes no weight and no moment. It counts like any other for schedule and data, so that a run
that is resumed, or has another layout, leaves out the same steps.
"""

import math
import statistics
from collections.abc import Iterable

from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import TrainConfig

WINDOW = 100
"""Losses that a spike is measured against."""
_LEAST = 20
_NORMAL = 1.4826
"""Median absolute deviation of a normal distribution, to its standard deviation."""


class Health:
    """Judges losses; the same on all ranks, as they see the same ones.

    Args:
        config: section `train` of the run.
        recent: the latest losses before this process took the run up, the newest last.
        skipped_in_a_row: steps that were left out since the last that was not.
    """

    def __init__(self, config: TrainConfig, recent: Iterable[float] = (), skipped_in_a_row: int = 0) -> None:
        self._config = config
        self._recent = list(recent)[-WINDOW:]
        self.skipped_in_a_row = skipped_in_a_row
        self._limit = math.inf

    @property
    def recent(self) -> tuple[float, ...]:
        """The latest losses, the newest last; what a checkpoint keeps."""
        return tuple(self._recent)

    def allows(self, loss: float) -> bool:
        """Whether a step with this loss may change the weights; asked once a step, before it does."""
        self._limit = self._spike_limit()
        return math.isfinite(loss) and not (self._config.skip_loss_spikes and loss > self._limit)

    def after_step(self, step: int, loss: float, skipped: bool, sequences: range) -> str | None:
        """Note a step; returns what there is to tell of it, if anything.

        Args:
            step: number of the step, from 1.
            loss: of the step, over all ranks.
            skipped: whether it was left out.
            sequences: sample indices of the batch, over all ranks.

        Raises:
            UserError: too many steps in a row were left out.
        """
        batch = f"sequences {sequences[0]} to {sequences[-1]}"
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        if self.skipped_in_a_row >= self._config.max_skipped_steps:
            raise UserError(
                f"{self.skipped_in_a_row} steps in a row, up to step {step}, were left out, as spikes or for want of "
                f"a finite loss and gradient; the last loss was {loss:.6g}",
                f"step {step}, {batch}",
                "go on from the last checkpoint with a lower optimizer.lr or clip_grad, or a longer "
                "optimizer.lr_warmup_iters",
            )
        spike = math.isfinite(loss) and loss > self._limit
        if math.isfinite(loss):
            self._recent = [*self._recent, loss][-WINDOW:]
        if spike:
            done = "left out" if skipped else "taken"
            return f"loss {loss:.4f} in step {step} is a spike (above {self._limit:.4f}), the step was {done}; {batch}"
        if skipped:
            return f"step {step} was left out: loss {loss:.4f}, gradients not finite or no loss; {batch}"
        return None

    def _spike_limit(self) -> float:
        threshold = self._config.loss_spike_threshold
        if not threshold or len(self._recent) < _LEAST:
            return math.inf
        middle = statistics.median(self._recent)
        deviation = statistics.median(abs(loss - middle) for loss in self._recent)
        return middle + threshold * _NORMAL * deviation
