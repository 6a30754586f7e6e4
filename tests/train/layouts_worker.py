"""Ranks of the layout tests: trains many small runs, one after the other, in one launch.

Usage: torchrun ... layouts_worker.py JOBS.json, with a list of {"files": [...], "overrides": [...]}. Each run's initial
weights, gathered from all ranks, are written to `initial.safetensors` in its folder.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file

from calm_megatron.config.errors import run_command_line
from calm_megatron.config.files import load_run
from calm_megatron.data.loader import Batch
from calm_megatron.parallel import grid as parallel
from calm_megatron.train import loop
from calm_megatron.train.engine import Engine
from calm_megatron.train.tasks import build_task

train_step = Engine.train_step


def record_and_train(engine: Engine, micro_batches: Sequence[Batch], step: int) -> dict[str, float]:
    """The engine's step, with the weights written before the first."""
    if step == 0:
        weights = engine.whole_weights()
        if engine.grid.is_main:
            save_file(weights, Path(engine.config.run.directory) / "initial.safetensors")
    return train_step(engine, micro_batches, step)


def main() -> None:
    """Run the jobs in their order."""
    Engine.train_step = record_and_train  # type: ignore[method-assign]
    for job in json.loads(Path(sys.argv[1]).read_text()):
        loop.run(build_task, load_run(job["files"], job["overrides"]))
    parallel.stop()


if __name__ == "__main__":
    run_command_line(main)
