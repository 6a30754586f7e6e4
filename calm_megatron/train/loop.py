"""The training loop, the same for every model. Read this first."""

import json
import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from calm_megatron.checkpoint.progress import Progress
from calm_megatron.checkpoint.store import CheckpointStore, Saved
from calm_megatron.config.errors import UserError
from calm_megatron.config.files import to_yaml
from calm_megatron.config.schema import CalmConfig, RunConfig
from calm_megatron.data.loader import DataSplits, batches
from calm_megatron.data.sampler import BatchSchedule
from calm_megatron.parallel import cpu_backend
from calm_megatron.parallel import grid as parallel
from calm_megatron.parallel.grid import Grid
from calm_megatron.parallel.lost_ranks import told
from calm_megatron.telemetry.files import write_atomically
from calm_megatron.telemetry.report import write_report
from calm_megatron.telemetry.writers import Telemetry
from calm_megatron.train.engine import Engine
from calm_megatron.train.health import Health
from calm_megatron.train.pipeline_engine import PipelineEngine
from calm_megatron.train.stop import StopSignal
from calm_megatron.train.task import Task
from calm_megatron.train.watchdog import Watchdog

BuildTask = Callable[[RunConfig, DataSplits, Grid], Task]


def run(build_task: BuildTask, config: RunConfig) -> Progress:
    """Train from the run folder's newest checkpoint, or from the start, to `train.train_iters` or a stop signal."""
    if config.train.precision == "fp16":
        cpu_backend.refuse_fp16()
    layout = config.parallel
    tensor_size, pipeline_size = layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size
    schedule = _schedule(config, parallel.data_parallel_size(tensor_size, pipeline_size))
    grid = parallel.start(layout.distributed_timeout_minutes, tensor_size, pipeline_size)
    data = _open_data(config)
    config = with_data_facts(config, data)
    task = build_task(config, data, grid)
    engine = (PipelineEngine if pipeline_size > 1 else Engine)(task, config, grid)
    store = CheckpointStore(config, grid, {**data.fingerprints, **task.fingerprints})
    damaged: list[str] = []
    progress = store.resume(engine, damaged.append) or Progress()
    directory = Path(config.run.directory)
    if grid.is_main:
        _describe_run(directory, config, data)
    steps = batches(data.train, schedule, progress.consumed_samples, grid.data_rank)
    iters, saved_at = config.train.train_iters, progress.step
    health = Health(config.train, progress.recent_losses, progress.skipped_in_a_row)
    with (
        told(grid.rank, str(directory / "stacks")),
        Telemetry(directory, config.logging, iters, grid.is_main, resumed_step=progress.step) as telemetry,
        StopSignal(grid) as stop,
        Watchdog(directory, grid.rank, layout.distributed_timeout_minutes) as watchdog,
    ):
        telemetry.event("model", f"{engine.parameters:,} parameters", **_machine(engine, grid))
        for message in damaged:
            telemetry.event("damage", message)
        signal_name = None
        while progress.step < iters and not (signal_name := stop.requested()):
            samples = schedule.batch_size_at(progress.consumed_samples)
            batch = next(steps)
            values = engine.train_step(batch, progress.step, health.allows)
            progress = progress.advance(samples, config.data.seq_length)
            telemetry.after_step(progress.step, values, progress.consumed_tokens)
            sequences = [sample for micro_batch in batch for sample in micro_batch.sequence_ids_B.tolist()]
            if news := health.after_step(progress.step, values["loss"], "skipped" in values, sequences):
                telemetry.event("health", news)
            progress = replace(progress, recent_losses=health.recent, skipped_in_a_row=health.skipped_in_a_row)
            watchdog.beat()
            if _due(layout.check_replicas_interval, progress.step):
                engine.check_replicas()
            if _due(config.evaluation.eval_interval, progress.step) and progress.step < iters:
                with watchdog.paused():
                    scores = _validate(task, engine, "valid", config.evaluation.eval_iters)
                telemetry.validation(progress.step, _numbers(scores))
            _tell_of(store.poll(), telemetry)
            if _due(config.checkpoint.save_interval, progress.step):
                with watchdog.paused():
                    _tell_of(store.begin(engine, progress), telemetry)
                saved_at = progress.step
        with watchdog.paused():
            if progress.step > saved_at:
                _tell_of(store.begin(engine, progress), telemetry)
            _tell_of(store.finish(), telemetry)
        if signal_name:
            telemetry.event("stop", f"stopped by {signal_name} after step {progress.step}; start again to go on")
        else:
            with watchdog.paused():
                _finish(task, engine, config, telemetry, directory)
    return progress


def with_data_facts(config: RunConfig, data: DataSplits) -> RunConfig:
    """The config with what only the data set knows filled in.

    Raises:
        UserError: the config says otherwise.
    """
    if isinstance(config.model, CalmConfig) and config.model.input == "tokens":
        given = config.model.pad_token_id
        if given not in (None, data.pad_id):
            raise UserError(
                f"model.pad_token_id = {given}, but the data set's is {data.pad_id}", "the config", "leave it out"
            )
        return replace(config, model=replace(config.model, pad_token_id=data.pad_id))
    return config


def _open_data(config: RunConfig) -> DataSplits:
    model = config.model
    return DataSplits.open(config.data, patch_size=model.patch_size, seed=config.run.seed, vocab_size=model.vocab_size)


def _schedule(config: RunConfig, data_parallel_size: int) -> BatchSchedule:
    train = config.train
    return BatchSchedule(train.global_batch_size, train.rampup_batch_size, train.micro_batch_size, data_parallel_size)


def _due(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0


def _tell_of(saved: Saved | None, telemetry: Telemetry) -> None:
    if saved is not None:
        size, rate = saved.bytes / 1e6, saved.bytes / 1e6 / max(saved.seconds, 1e-9)
        telemetry.event(
            "checkpoint",
            f"saved {saved.path.name}: {size:.1f} MB at {rate:.0f} MB/s, training waited {saved.stall:.2f} s",
            bytes=saved.bytes,
            seconds=saved.seconds,
            stall_seconds=saved.stall,
        )


def _validate(task: Task, engine: Engine, split: str, eval_iters: int) -> dict[str, object]:
    engine.model.eval()
    scores = task.validate(engine.model, split, eval_iters)
    engine.model.train()
    return scores


def _finish(task: Task, engine: Engine, config: RunConfig, telemetry: Telemetry, directory: Path) -> None:
    """The last validation: logged, for programs in `evaluation.json`, and for people in `report.html`."""
    scores = _validate(task, engine, "valid", config.evaluation.final_eval_iters)
    telemetry.validation(config.train.train_iters, _numbers(scores))
    if engine.grid.is_main:
        text = json.dumps({"step": config.train.train_iters, **scores}, indent=2)
        write_atomically(directory / "evaluation.json", f"{text}\n".encode())
        kind = config.model.type
        if kind != "ar":  # the baseline has its curves in TensorBoard
            autoencoder, calm = (directory if kind == name else None for name in ("autoencoder", "calm"))
            report = write_report(directory, autoencoder_run=autoencoder, calm_run=calm)
            telemetry.event("report", f"wrote {report}")


def _numbers(scores: dict[str, object]) -> dict[str, float]:
    """The scores proper, for logs; counts are whole numbers."""
    return {name: float(value) for name, value in scores.items() if isinstance(value, float)}


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


def _machine(engine: Engine, grid: Grid) -> dict[str, object]:
    return {
        "parameters": engine.parameters,
        "ranks": grid.world_size,
        "device": str(grid.device) if grid.device.type == "cpu" else torch.cuda.get_device_name(grid.device),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
