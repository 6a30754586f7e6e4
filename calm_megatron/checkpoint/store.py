"""Checkpoints of a run: written aside, published by one rename, the newest ones kept.

<run>/checkpoints/step_00001000/
    weights.safetensors   whole weights, in the precision of the run: what evaluation, generation and CALM read
    engine/               each rank's part of weights and optimizer state, written by DeepSpeed
    progress.json         place in the run
    layout.json           ranks and ZeRO stage of the engine's files
    config.yaml           the whole config
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from calm_megatron.checkpoint.progress import Progress
from calm_megatron.config.errors import UserError
from calm_megatron.config.files import load_run, to_tree, to_yaml
from calm_megatron.config.schema import RunConfig
from calm_megatron.parallel.grid import Grid


class Saveable(Protocol):
    """What the store needs of an engine; all ranks call together."""

    def save(self, directory: Path) -> None:
        """Write this rank's part."""

    def load(self, directory: Path) -> None:
        """Read this rank's part."""

    def whole_weights(self) -> dict[str, Tensor]:
        """All weights at the main rank."""


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, config: RunConfig, grid: Grid) -> None:
        self.config, self.grid = config, grid
        self.directory = checkpoints_of(Path(config.run.directory))

    def save(self, engine: Saveable, progress: Progress) -> Path:
        """Write and publish a checkpoint, then delete those beyond `keep_last`; called by all ranks."""
        final = self.directory / f"step_{progress.step:08d}"
        aside = self.directory / f".{final.name}.partial"
        self._main_first(lambda: _make_room(aside))
        engine.save(aside)
        weights = engine.whole_weights()
        self._main_first(lambda: self._publish(aside, final, weights, progress))
        return final

    def resume(self, engine: Saveable) -> Progress | None:
        """Load the newest checkpoint into the engine; None when the run has none. Called by all ranks.

        Raises:
            UserError: the checkpoint was written by another model or layout.
        """
        newest = newest_checkpoint(self.directory)
        if newest is None:
            return None
        check_same_run(self.config, newest)
        layout = json.loads((newest / "layout.json").read_text())
        if layout != self._layout():
            raise UserError(
                f"the checkpoint was written with {layout}, this run has {self._layout()}",
                str(newest),
                "resume with the layout of the checkpoint",
            )
        engine.load(newest)
        return Progress.load(newest / "progress.json")

    def _layout(self) -> dict[str, Any]:
        parallel = self.config.parallel
        return {
            "world_size": self.grid.world_size,
            "tensor_model_parallel_size": self.grid.tensor_size,
            "pipeline_model_parallel_size": self.grid.stages.size,
            "zero_stage": parallel.zero_stage,
            "precision": self.config.train.precision,
        }

    def _publish(self, aside: Path, final: Path, weights: dict[str, Tensor], progress: Progress) -> None:
        save_file(weights, aside / "weights.safetensors")
        progress.save(aside / "progress.json")
        (aside / "layout.json").write_text(json.dumps(self._layout(), indent=2) + "\n")
        (aside / "config.yaml").write_text(to_yaml(self.config))
        for path in aside.rglob("*"):
            _sync(path)
        if final.exists():
            _remove(final)
        os.replace(aside, final)
        _sync(self.directory)
        for old in _published(self.directory)[: -self.config.checkpoint.keep_last]:
            _remove(old)

    def _main_first(self, work: Callable[[], None]) -> None:
        """The main rank works, the others wait; a failure there is the same failure everywhere."""
        failure: list[str | None] = [None]
        if self.grid.is_main:
            try:
                work()
            except (OSError, SafetensorError) as error:
                failure = [f"{error}"]
        dist.broadcast_object_list(failure, src=0)
        if failure[0] is not None:
            raise UserError(
                f"the checkpoint could not be written: {failure[0]}",
                str(self.directory),
                "make room or mend the folder's rights; earlier checkpoints are intact",
            )


def checkpoints_of(run_directory: Path) -> Path:
    """Folder of a run's checkpoints."""
    return run_directory / "checkpoints"


def newest_checkpoint(directory: Path) -> Path | None:
    """The newest published checkpoint in a folder of checkpoints."""
    published = _published(directory)
    return published[-1] if published else None


def check_same_run(config: RunConfig, checkpoint: Path) -> None:
    """Raise a `UserError` when a checkpoint belongs to another model or another data order."""
    saved = to_tree(load_run([checkpoint / "config.yaml"]))
    now = to_tree(config)
    kind = saved["model"]["type"]
    model = saved["model"] if kind == now["model"]["type"] else {"type": kind}
    fixed = {"model": model, "data": saved["data"], "run": {"seed": saved["run"]["seed"]}}
    problems = [
        f"{section}.{name} was {value!r} and is now {now[section][name]!r}"
        for section, values in fixed.items()
        for name, value in values.items()
        if now[section].get(name) != value
    ]
    if problems:
        raise UserError(
            "the run folder holds checkpoints of another run:\n  " + "\n  ".join(problems),
            str(checkpoint),
            "set run.directory to a new folder, or take these settings back",
        )


def _published(directory: Path) -> list[Path]:
    return sorted(directory.glob("step_[0-9]*")) if directory.is_dir() else []


def _make_room(aside: Path) -> None:
    """Remove what killed saves and deletions left, and make the folder of the next save."""
    for left in aside.parent.glob(".step_*.partial"):
        shutil.rmtree(left)
    aside.mkdir(parents=True)


def _remove(checkpoint: Path) -> None:
    """Delete a published checkpoint; a kill on the way leaves no half of it under its name."""
    going = checkpoint.with_name(f".{checkpoint.name}.deleted.partial")
    os.replace(checkpoint, going)
    shutil.rmtree(going)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
