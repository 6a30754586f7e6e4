"""Ranks of a pipeline: what each stage takes alone, and what real steps take.

Usage: torchrun ... -m benchmarks.simulation_worker JOBS FOLDER, with jobs {"name": [settings, ...]}.

A stage is timed by itself with all ranks at work, as they are in a step, so that they share the machine alike.
"""

import json
import statistics
import sys
import time

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.small_run import RandomTokens, engine, jobs_of_rank, micro_batches, small, start
from calm_megatron.config.schema import RunConfig
from calm_megatron.data.batch import Batch
from calm_megatron.parallel import grid as parallel
from calm_megatron.parallel.grid import Grid
from calm_megatron.train.engine import Engine

ROUNDS = 5
SECONDS_AT_WORK = 0.5


def main() -> None:
    """Measure each job; the findings are those of each round."""
    jobs, findings = jobs_of_rank(sys.argv)
    found: dict[str, list[dict[str, float]]] = {}
    for name, settings in jobs.items():
        config = small(*settings)
        grid = start(config)
        trained = engine(RandomTokens(config, grid))
        batches = micro_batches(config, grid, 0)
        trained.train_step(batches, 0)
        state = torch.zeros(_state_shape(trained, config, grid), device=grid.device)
        found[name] = []
        for step in range(1, ROUNDS + 1):
            forward, backward = _stage_at_work(trained, batches[0], state)
            sent, update = _sending(state, grid), _update_alone(trained)
            dist.barrier()
            start_of_step = time.perf_counter()
            trained.train_step(micro_batches(config, grid, step), step)
            whole = time.perf_counter() - start_of_step
            found[name].append(
                {"forward": forward, "backward": backward, "send": sent, "update": update, "step": whole}
            )
        trained.engine.destroy()
    findings.write_text(json.dumps(found))
    parallel.stop()


def _state_shape(trained: Engine, config: RunConfig, grid: Grid) -> list[int]:
    """Of what travels between the two stages, as the first makes it."""
    shape: list[list[int] | None] = [None]
    if grid.stages.is_first:
        batch = micro_batches(config, grid, 0)[0]
        sent = trained.task.forward(trained.model, batch, 0)
        assert isinstance(sent, Tensor)
        shape = [list(sent.shape)]
    dist.broadcast_object_list(shape, src=0)
    assert shape[0] is not None
    return shape[0]


def _stage_at_work(trained: Engine, batch: Batch, state: Tensor) -> tuple[float, float]:
    """Seconds of forward and backward pass of a micro-batch, while the other stage does the same all the time."""
    stages = trained.grid.stages
    received = None if stages.is_first else state.clone().requires_grad_()

    def module(*arguments: object) -> object:
        return trained.model(*arguments, received=received)

    passes = []
    dist.barrier()
    end = begin = time.perf_counter()
    while end - begin < SECONDS_AT_WORK:
        start_of_pass = time.perf_counter()
        result = trained.task.forward(module, batch, 0)
        middle = time.perf_counter()
        if isinstance(result, Tensor):
            result.backward(torch.zeros_like(result))
        else:
            result.loss.backward()
        end = time.perf_counter()
        passes.append((middle - start_of_pass, end - middle))
    trained.model.zero_grad(set_to_none=False)
    forward, backward = (statistics.median(times) for times in zip(*passes, strict=True))
    return forward, backward


def _sending(state: Tensor, grid: Grid) -> float:
    """Seconds until what one stage sends is at the other."""
    dist.barrier()
    start_of_send = time.perf_counter()
    if grid.stages.is_first:
        dist.send(state, group=grid.stages.group, group_dst=1)
        dist.recv(state, group=grid.stages.group, group_src=1)
    else:
        dist.recv(state, group=grid.stages.group, group_src=0)
        dist.send(state, group=grid.stages.group, group_dst=0)
    return (time.perf_counter() - start_of_send) / 2


def _update_alone(trained: Engine) -> float:
    """Seconds of what ends a step: the gradients' norm over all ranks, and the optimizer."""
    for weight in trained.model.parameters():
        weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
    dist.barrier()
    start_of_update = time.perf_counter()
    trained._clipped_norm()
    trained.optimizer.step()
    return time.perf_counter() - start_of_update


if __name__ == "__main__":
    main()
