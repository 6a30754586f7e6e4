"""How long training stands still for a save in the background, against one that waits for the disk.

A matrix product stands for a training step. The part beside the row is what the background costs where no core is
idle: the same step while the checkpoint is written, against one before.
"""

import statistics
import time
from dataclasses import replace

import torch

from benchmarks.harness import Part, Row, row
from benchmarks.saved import SHAPES, State, on_disk, save, store
from calm_megatron.checkpoint.progress import Progress
from calm_megatron.checkpoint.store import CheckpointStore
from calm_megatron.parallel.grid import one_rank

ROUNDS = 5


def run() -> Row:
    """Save in turns."""
    state = State(SHAPES)
    stalls, waits, meanwhile, before = [], [], [], []
    with on_disk() as folder, one_rank() as grid:
        background = store(folder / "background", grid)
        waiting = store(folder / "waiting", grid, "checkpoint.async_save=false")
        for number in range(ROUNDS + 1):
            before.append(statistics.median(_step() for _ in range(20)))
            stall, steps = _stall(background, state, number)
            stalls.append(stall)
            meanwhile.append(statistics.median(steps))
            waits.append(1e3 * save(waiting, state, number).stall)
        for checkpoints in (background, waiting):
            state.demand_taken_over(checkpoints.resume)
    slower = Part("a step while it is written", statistics.median(meanwhile[1:]), statistics.median(before[1:]))
    return replace(row(stalls[1:], waits[1:], "ms"), parts=(slower,))


def _stall(background: CheckpointStore, state: State, number: int) -> tuple[float, list[float]]:
    """Milliseconds within the store, from the beginning of a save to its publication; and those of steps meanwhile."""
    since = time.perf_counter()
    background.begin(state, Progress(number))
    stall, steps, saved = 1e3 * (time.perf_counter() - since), [], None
    while saved is None:
        steps.append(_step())
        since = time.perf_counter()
        saved = background.poll()
        stall += 1e3 * (time.perf_counter() - since)
    return stall, steps


def _step() -> float:
    matrix = torch.ones(768, 768)
    since = time.perf_counter()
    torch.mm(matrix, matrix)
    return 1e3 * (time.perf_counter() - since)
