"""The training loop, the same for every model. Read this first."""

import json
from dataclasses import replace

from calm_megatron.checkpoint.progress import Progress
from calm_megatron.checkpoint.store import Saved
from calm_megatron.config.atomic import write_atomically
from calm_megatron.config.schema import RunConfig
from calm_megatron.data.prefetch import TrainingBatches
from calm_megatron.parallel.checkup import as_table, remarks
from calm_megatron.parallel.lost_ranks import told
from calm_megatron.telemetry.profiler import ProfilerWindow
from calm_megatron.telemetry.report import write_report
from calm_megatron.telemetry.writers import Telemetry
from calm_megatron.train.assembly import BuildTask, Parts, assemble
from calm_megatron.train.health import Health
from calm_megatron.train.stop import StopSignal
from calm_megatron.train.stragglers import report
from calm_megatron.train.watchdog import Watchdog


def run(build_task: BuildTask, config: RunConfig) -> Progress:
    """Train from the run folder's newest checkpoint, or from the start, to `train.train_iters` or a stop signal."""
    parts = assemble(build_task, config)
    grid, directory, iters = parts.grid, parts.directory, config.train.train_iters
    with (
        told(grid.rank, str(directory / "stacks")),
        Telemetry(directory, config.logging, iters, grid.is_main, parts.progress.step, parts.speed()) as telemetry,
        ProfilerWindow(directory, config.logging, grid.rank, parts.progress.step) as profiler,
        StopSignal(grid) as stop,
        Watchdog(directory, grid.rank, config.parallel.distributed_timeout_minutes) as watchdog,
    ):
        loop = Loop(parts, telemetry, watchdog)
        signal_name = None
        while loop.progress.step < iters and not (signal_name := stop.requested()):
            loop.step()
            profiler.after_step()
            loop.check()
            loop.save()
        loop.end(signal_name)
    return loop.progress


class Loop:
    """What is done at each step; all ranks do the same."""

    def __init__(self, parts: Parts, telemetry: Telemetry, watchdog: Watchdog) -> None:
        self.parts, self.config = parts, parts.config
        self.engine, self.store = parts.engine, parts.store
        self.telemetry, self.watchdog = telemetry, watchdog
        self.progress = parts.progress
        self._saved_at = self._reported_at = self.progress.step
        self._health = Health(self.config.train, self.progress.recent_losses, self.progress.skipped_in_a_row)
        self._batches = TrainingBatches(
            parts.data.train,
            parts.schedule,
            self.progress.consumed_samples,
            parts.grid.data_rank,
            num_workers=self.config.data.num_workers,
            prefetch_steps=self.config.data.prefetch_steps,
            pin_memory=parts.grid.device.type == "cuda",
        )
        telemetry.event("model", f"{self.engine.parameters:,} parameters", **parts.machine())
        if parts.started_from is not None:
            telemetry.event("weights", f"the first are those of {parts.started_from}")
        for message in parts.damaged:
            telemetry.event("damage", message)
        if parts.ranks:
            telemetry.event(
                "ranks", "; ".join(remarks(parts.ranks)) or "all ranks are well", table=as_table(parts.ranks)
            )

    def step(self) -> None:
        """Train on the next batch."""
        samples = self.parts.schedule.batch_size_at(self.progress.consumed_samples)
        values = self.engine.train_step(next(self._batches), self.progress.step, self._health.allows)
        values = {**values, "speed/data_wait_seconds": self._batches.wait_seconds}
        self.progress = self.progress.advance(samples, self.config.data.seq_length)
        step = self.progress.step
        if _due(self.config.logging.straggler_interval, step):
            values |= self._own_times()
        self.telemetry.after_step(step, values, self.progress.consumed_tokens)
        sequences = range(self.progress.consumed_samples - samples, self.progress.consumed_samples)
        if news := self._health.after_step(step, values["loss"], "skipped" in values, sequences):
            self.telemetry.event("health", news)
        self.progress = replace(
            self.progress, recent_losses=self._health.recent, skipped_in_a_row=self._health.skipped_in_a_row
        )
        self.watchdog.beat()

    def _own_times(self) -> dict[str, float]:
        """The ranks' own times since the last report; late ones are told of."""
        steps = self.progress.step - self._reported_at
        values, late = report(self.engine.own_time.take(), steps, self.parts.grid)
        self._reported_at = self.progress.step
        if late:
            self.telemetry.event("ranks", "; ".join(late))
        return values

    def check(self) -> None:
        """Compare copies of weights, and validate, when it is time."""
        step, evaluation = self.progress.step, self.config.evaluation
        if _due(self.config.parallel.check_replicas_interval, step):
            self.engine.check_replicas()
        if _due(evaluation.eval_interval, step) and step < self.config.train.train_iters:
            self.telemetry.validation(step, _numbers(self._validate(evaluation.eval_iters)))

    def save(self) -> None:
        """Publish the checkpoint that has been written meanwhile, and begin another when it is time."""
        self._tell_of(self.store.poll())
        if _due(self.config.checkpoint.save_interval, self.progress.step):
            self._begin_save()

    def end(self, signal_name: str | None) -> None:
        """Save what is not yet saved; unless a signal stopped the run, validate and report."""
        if self.progress.step > self._saved_at:
            self._begin_save()
        with self.watchdog.paused():
            self._tell_of(self.store.finish())
        self._batches.close()
        if signal_name:
            message = f"stopped by {signal_name} after step {self.progress.step}; start again to go on"
            self.telemetry.event("stop", message)
        else:
            self._report(self._validate(self.config.evaluation.final_eval_iters))

    def _begin_save(self) -> None:
        with self.watchdog.paused():
            self._tell_of(self.store.begin(self.engine.state, self.progress))
        self._saved_at = self.progress.step

    def _validate(self, eval_iters: int) -> dict[str, object]:
        with self.watchdog.paused():
            self.engine.model.eval()
            scores = self.parts.task.validate(self.engine.model, "valid", eval_iters)
            self.engine.model.train()
        return scores

    def _report(self, scores: dict[str, object]) -> None:
        """The last validation: logged, for programs in `evaluation.json`, and for people in `report.html`."""
        step, kind, directory = self.config.train.train_iters, self.config.model.type, self.parts.directory
        self.telemetry.validation(step, _numbers(scores))
        if not self.parts.grid.is_main:
            return
        write_atomically(
            directory / "evaluation.json", (json.dumps({"step": step, **scores}, indent=2) + "\n").encode()
        )
        if kind != "ar":  # the baseline has its curves in TensorBoard
            autoencoder, calm = (directory if kind == name else None for name in ("autoencoder", "calm"))
            report = write_report(directory, autoencoder_run=autoencoder, calm_run=calm)
            self.telemetry.event("report", f"wrote {report}")

    def _tell_of(self, saved: Saved | None) -> None:
        if saved is not None:
            size, rate = saved.bytes / 1e6, saved.bytes / 1e6 / max(saved.seconds, 1e-9)
            self.telemetry.event(
                "checkpoint",
                f"saved {saved.path.name}: {size:.1f} MB at {rate:.0f} MB/s, training waited {saved.stall:.2f} s",
                bytes=saved.bytes,
                seconds=saved.seconds,
                stall_seconds=saved.stall,
            )


def _due(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0


def _numbers(scores: dict[str, object]) -> dict[str, float]:
    """The scores proper, for logs; counts are whole numbers."""
    return {name: float(value) for name, value in scores.items() if isinstance(value, float)}
