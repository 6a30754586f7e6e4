"""Ranks of the layout tests: trains many small runs, one after the other, in one launch.

Each run has a process of its own, forked when all is imported. The groups of ranks end with it: each has a thread that
looks a hundred times a second whether there is something to do, and there are twenty groups in a run of stages.

Usage: torchrun ... layouts_worker.py [record] JOBS.json, with a list of the overrides of each run. Told to record, it
saves the state with which each run begins or goes on as a checkpoint of its folder `initial`.
"""

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch.distributed as dist

from calm_megatron.checkpoint.progress import Progress
from calm_megatron.checkpoint.store import CheckpointStore
from calm_megatron.config.errors import run_command_line
from calm_megatron.config.files import load_run
from calm_megatron.config.parent import die_with_parent
from calm_megatron.data.batch import Batch
from calm_megatron.parallel import cpu_backend
from calm_megatron.parallel import grid as parallel
from calm_megatron.train import loop
from calm_megatron.train.engine import Engine
from calm_megatron.train.tasks import build_task

train_step = Engine.train_step
recorded: set[Engine] = set()


def record_and_train(
    engine: Engine, micro_batches: Sequence[Batch], step: int, allows: Callable[[float], bool]
) -> dict[str, float]:
    """The engine's step, with the state saved before the first."""
    if engine not in recorded:
        recorded.add(engine)
        config = engine.config
        elsewhere = replace(config, run=replace(config.run, directory=f"{config.run.directory}/initial"))
        store = CheckpointStore(elsewhere, engine.grid)
        store.begin(engine.state, Progress(step))
        store.finish()
    return train_step(engine, micro_batches, step, allows)


def join(run: int) -> None:
    """Meet the other ranks of a run: at torchrun's store, which serves them all, each run has its own keys."""
    address, port, size = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), int(os.environ["WORLD_SIZE"])
    store = dist.PrefixStore(f"run {run}", dist.TCPStore(address, port, size, is_master=False))
    dist.init_process_group(cpu_backend.backend(), store=store, rank=int(os.environ["RANK"]), world_size=size)


def train(run: int, overrides: list[str]) -> None:
    """One run, from joining the other ranks to leaving them."""
    die_with_parent()
    if "RANK" in os.environ:
        join(run)
    loop.run(build_task, load_run([], overrides))
    parallel.stop()


def main() -> int:
    """Run the jobs in their order; returns the exit code of the first that fails."""
    *record, jobs = sys.argv[1:]
    if record:
        Engine.train_step = record_and_train  # type: ignore[method-assign]
    for job in enumerate(json.loads(Path(jobs).read_text())):
        program = partial(train, *job)
        process = multiprocessing.get_context("fork").Process(target=run_command_line, args=(program,))
        process.start()
        process.join()
        if process.exitcode:
            return process.exitcode
    return 0


if __name__ == "__main__":
    run_command_line(main)
