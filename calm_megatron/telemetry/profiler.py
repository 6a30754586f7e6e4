"""A window of torch's profiler: traces of a few steps, for TensorBoard or chrome://tracing."""

from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch.profiler import ProfilerActivity, profile, schedule, tensorboard_trace_handler

from calm_megatron.config.schema import LoggingConfig


class ProfilerWindow:
    """While open, writes the traces of the steps that the config names into `<run>/profile/`, a file for each rank.

    Args:
        directory: of the run.
        logging: section `logging` of the run.
        rank: of this process.
        step: that the run has done; a window that lies behind is not opened.
    """

    def __init__(self, directory: Path, logging: LoggingConfig, rank: int, step: int) -> None:
        first = logging.profile_first_step
        self._profile: profile | None = None
        if first is None or first <= step + 1:
            return
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=first - step - 2, warmup=1, active=logging.profile_steps, repeat=1),
            on_trace_ready=tensorboard_trace_handler(str(directory / "profile"), f"rank_{rank:05d}"),
            profile_memory=True,
        )

    def after_step(self) -> None:
        """A step is done."""
        if self._profile is not None:
            self._profile.step()

    def __enter__(self) -> Self:
        if self._profile is not None:
            self._profile.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._profile is not None:
            self._profile.stop()
