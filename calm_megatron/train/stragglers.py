"""Which rank is late: each rank's own time in forward passes, in which data ranks wait for nobody.

The time of a whole step says nothing, as all ranks wait for the slowest in it.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from calm_megatron.config.machine import this_node
from calm_megatron.parallel.grid import Grid

_LATE = 1.3
"""Times the median of the ranks at the same stage."""
_EVENTS = 512
"""Measurements on a GPU that are kept by themselves, at least for a while."""


class OwnTime:
    """Adds up this rank's forward passes; on a GPU between events on its stream, so that nothing waits."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Within the block, time counts."""
        if not self._on_gpu:
            start = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - start
            return
        events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        events[0].record()
        yield
        events[1].record()
        self._events.append(events)
        if len(self._events) == 2 * _EVENTS:
            self._add_up(_EVENTS)

    def take(self) -> float:
        """Seconds since it was last asked."""
        self._add_up(len(self._events))
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _add_up(self, count: int) -> None:
        """The oldest measurements, when the GPU is done with them."""
        old, self._events = self._events[:count], self._events[count:]
        if old:
            old[-1][1].synchronize()
            self._seconds += sum(first.elapsed_time(last) for first, last in old) / 1e3


def report(seconds: float, steps: int, grid: Grid) -> tuple[dict[str, float], list[str]]:
    """The ranks' own times a step, as values for the log and words on late ones; called by all ranks.

    Args:
        seconds: this rank's, over the steps.
        steps: how many.
        grid: place of this rank.
    """
    everyone: list[tuple[float, int, str]] = [(0.0, 0, "")] * grid.world_size
    dist.all_gather_object(everyone, (seconds / steps, grid.stages.rank, this_node()))
    late = []
    for stage in range(grid.stages.size):
        times = {rank: own for rank, (own, at, _) in enumerate(everyone) if at == stage}
        middle = statistics.median_low(times.values())
        late += [
            f"rank {rank} ({everyone[rank][2]}) takes {own / middle:.1f} times as long as the median of its stage"
            for rank, own in times.items()
            if own > _LATE * middle
        ]
    own_times = [own for own, _, _ in everyone]
    return {
        "ranks/forward_seconds": statistics.median(own_times),
        "ranks/forward_seconds_slowest": max(own_times),
    }, late
