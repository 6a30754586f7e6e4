"""The parts of a run, put together from its config: ranks, data, task, engine and checkpoints."""

import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

from calm_megatron.checkpoint.progress import Progress
from calm_megatron.checkpoint.store import CheckpointStore
from calm_megatron.checkpoint.warm_start import open_weights
from calm_megatron.config.atomic import write_atomically
from calm_megatron.config.errors import UserError
from calm_megatron.config.files import to_yaml
from calm_megatron.config.schema import CalmConfig, RunConfig
from calm_megatron.data.data_splits import DataSplits
from calm_megatron.data.sampler import BatchSchedule
from calm_megatron.model import kernels
from calm_megatron.parallel import checkup, cpu_backend
from calm_megatron.parallel import grid as parallel
from calm_megatron.parallel.checkup import Found
from calm_megatron.parallel.grid import Grid
from calm_megatron.telemetry.model_speed import ModelSpeed
from calm_megatron.train.engine import Engine
from calm_megatron.train.pipeline_engine import PipelineEngine
from calm_megatron.train.task import Task

BuildTask = Callable[[RunConfig, DataSplits, Grid], Task]


@dataclass(frozen=True)
class Parts:
    """What a run trains with, on this rank."""

    config: RunConfig
    grid: Grid
    schedule: BatchSchedule
    data: DataSplits
    task: Task
    engine: Engine
    store: CheckpointStore
    progress: Progress
    """Where the run is taken up."""
    damaged: tuple[str, ...]
    """Checkpoints that were found damaged and left out."""
    ranks: tuple[Found, ...]
    """What the check before the start found; nothing without it."""
    started_from: str | None
    """Of a new run: where its weights came from, if they are not random."""

    @property
    def directory(self) -> Path:
        """Folder of the run."""
        return Path(self.config.run.directory)

    def speed(self) -> ModelSpeed:
        """What makes FLOP/s and MFU of tokens a second."""
        return ModelSpeed.of(self.config, self.grid.world_size)

    def machine(self) -> dict[str, object]:
        """What it runs on, for the log."""
        device = self.grid.device
        return {
            "parameters": self.engine.parameters,
            "ranks": self.grid.world_size,
            "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "kernels": kernels.chosen(device),
        }


def assemble(build_task: BuildTask, config: RunConfig) -> Parts:
    """Join the ranks, open the data, build model and engine, and take up the run's newest checkpoint, or given weights.

    Raises:
        UserError: something outside does not fit the config.
    """
    if config.train.precision == "fp16":
        cpu_backend.refuse_fp16()
    layout, train = config.parallel, config.train
    tensor_size, pipeline_size = layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size
    data_ranks = parallel.data_parallel_size(tensor_size, pipeline_size)
    schedule = BatchSchedule(train.global_batch_size, train.rampup_batch_size, train.micro_batch_size, data_ranks)
    grid = parallel.start(layout.distributed_timeout_minutes, tensor_size, pipeline_size)
    everyone = checkup.examine(grid, Path(config.run.directory)) if layout.startup_check else []
    if everyone:
        checkup.refuse(everyone)
    data = _open_data(config)
    config = with_data_facts(config, data)
    task = build_task(config, data, grid)
    _demand_same(task.fingerprints)
    engine = (PipelineEngine if pipeline_size > 1 else Engine)(task, config, grid)
    store = CheckpointStore(config, grid, {**data.fingerprints, **task.fingerprints})
    damaged: list[str] = []
    progress = store.resume(engine.state, damaged.append)
    started_from = None
    if progress is None:
        progress, started_from = Progress(), config.checkpoint.pretrained_checkpoint
        if started_from is not None:
            accept = config.checkpoint.accept_changed_sources
            engine.state.take_weights(open_weights(started_from, config.model, store.fingerprints, accept))
    if grid.is_main:
        _describe_run(Path(config.run.directory), config, data)
    return Parts(
        config, grid, schedule, data, task, engine, store, progress, tuple(damaged), tuple(everyone), started_from
    )


def _demand_same(fingerprints: Mapping[str, str]) -> None:
    """Raise a `UserError` unless all ranks have read the same: what is newest may have changed meanwhile."""
    everyone: list[Mapping[str, str]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everyone, dict(fingerprints))
    other = next((rank for rank, theirs in enumerate(everyone) if theirs != everyone[0]), None)
    if other is not None:
        names = ", ".join(name for name in everyone[0] if everyone[0][name] != everyone[other].get(name))
        raise UserError(
            f"rank {other} has read another {names} than rank 0",
            "the folders that the config names",
            "name a checkpoint instead of a run that is still being trained, or see that all nodes see the same files",
        )


def with_data_facts(config: RunConfig, data: DataSplits) -> RunConfig:
    """The config with what only the data set knows filled in.

    Raises:
        UserError: the config says otherwise.
    """
    if isinstance(config.model, CalmConfig) and config.model.input == "tokens":
        given, pad_id = config.model.pad_token_id, data.meaning.pad_id
        if given not in (None, pad_id):
            raise UserError(
                f"model.pad_token_id = {given}, but the data set's is {pad_id}",
                "the config",
                "leave it out",
            )
        return replace(config, model=replace(config.model, pad_token_id=pad_id))
    return config


def _open_data(config: RunConfig) -> DataSplits:
    model = config.model
    return DataSplits.open(config.data, patch_size=model.patch_size, seed=config.run.seed, vocab_size=model.vocab_size)


def _describe_run(directory: Path, config: RunConfig, data: DataSplits) -> None:
    """Put config and tokenizer into the run folder, so that it stands for itself."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / "config.yaml", to_yaml(config).encode())
        source = data.tokenizer_path
        for file in [source] if source.is_file() else source.glob("*.json"):
            (directory / "tokenizer").mkdir(exist_ok=True)
            shutil.copy(file, directory / "tokenizer" / file.name)
    except OSError as error:
        raise UserError(f"the run folder cannot be written: {error}", str(directory), "name another folder") from None
