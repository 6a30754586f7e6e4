"""How fast a run goes, how long it still takes and how much memory it took."""

import os
import resource
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

GIB = 2**30


@dataclass(frozen=True)
class StepMeasures:
    """What was measured at the end of one step; none where there is nothing to tell yet."""

    seconds: float
    """Wall time of the step."""
    tokens_per_second: float | None
    """Over the last steps of the window, the first step of the process left out."""
    seconds_left: float | None
    """For the rest of the run, at the median pace of the window."""
    host_gib: float
    """Resident memory of this process now."""
    gpu_gib: float | None
    """Memory that tensors hold on the GPU now; none without a GPU."""
    host_peak_gib: float
    """Largest resident memory of this process so far."""
    gpu_peak_gib: float | None
    """Largest memory that tensors held on the GPU so far; none without a GPU."""


class StepMeter:
    """Measures the steps of one process.

    The first step is left out of pace and throughput: it pays for allocations, compilation and cold files.

    Args:
        train_iters: the run's last step.
        window: how many steps the pace is taken over.
        clock: monotonic time in seconds.
    """

    def __init__(self, train_iters: int, window: int = 20, clock: Callable[[], float] = time.perf_counter) -> None:
        self._train_iters = train_iters
        self._clock = clock
        self._step_start = clock()
        self._tokens: int | None = None
        self._seconds_of_steps: deque[float] = deque(maxlen=window)
        self._tokens_of_steps: deque[int] = deque(maxlen=window)

    def restart_clock(self) -> float:
        """Say that the time since the last step went elsewhere (validation, a checkpoint).

        Returns:
            That time in seconds; it will not count as part of the next step.
        """
        now = self._clock()
        elsewhere, self._step_start = now - self._step_start, now
        return elsewhere

    def after_step(self, step: int, tokens: int) -> StepMeasures:
        """Measure the step that just ended.

        Args:
            step: how many steps the run has done, this one included.
            tokens: how many tokens the whole run has consumed, this step included.
        """
        seconds = self.restart_clock()
        if self._tokens is not None:
            self._seconds_of_steps.append(seconds)
            self._tokens_of_steps.append(tokens - self._tokens)
        self._tokens = tokens
        return StepMeasures(
            seconds=seconds,
            tokens_per_second=self._tokens_per_second(),
            seconds_left=self._seconds_left(step),
            host_gib=host_bytes() / GIB,
            gpu_gib=torch.cuda.memory_allocated() / GIB if torch.cuda.is_available() else None,
            host_peak_gib=host_peak_bytes() / GIB,
            gpu_peak_gib=torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else None,
        )

    def _tokens_per_second(self) -> float | None:
        seconds = sum(self._seconds_of_steps)
        return sum(self._tokens_of_steps) / seconds if seconds > 0 else None

    def _seconds_left(self, step: int) -> float | None:
        if not self._seconds_of_steps:
            return None
        return max(self._train_iters - step, 0) * statistics.median(self._seconds_of_steps)


def host_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def host_peak_bytes() -> int:
    """Largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
