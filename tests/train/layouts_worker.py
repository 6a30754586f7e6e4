"""Ranks of the layout tests: trains many small runs, one after the other, in one launch.

Usage: torchrun ... layouts_worker.py [record] JOBS.json, with a list of the overrides of each run. Told to record, it
saves the state with which each run begins or goes on as a checkpoint of its folder `initial`.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from calm_megatron.checkpoint.progress import Progress
from calm_megatron.checkpoint.store import CheckpointStore
from calm_megatron.config.errors import run_command_line
from calm_megatron.config.files import load_run
from calm_megatron.data.batch import Batch
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


def main() -> None:
    """Run the jobs in their order."""
    *record, jobs = sys.argv[1:]
    if record:
        Engine.train_step = record_and_train  # type: ignore[method-assign]
    for overrides in json.loads(Path(jobs).read_text()):
        loop.run(build_task, load_run([], overrides))
    parallel.stop()


if __name__ == "__main__":
    run_command_line(main)
