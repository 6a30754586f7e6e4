"""The one object that the training loop talks to about what a user sees of a run."""

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import LoggingConfig
from calm_megatron.telemetry.console import Console
from calm_megatron.telemetry.environment import describe_environment
from calm_megatron.telemetry.meters import StepMeasures, StepMeter
from calm_megatron.telemetry.model_speed import ModelSpeed
from calm_megatron.telemetry.run_log import FILE_NAME, Event, LogFile, Record


class Writer(Protocol):
    """One place where a run is told of."""

    def record(self, record: Record) -> None:
        """Tell the values of a training step or a validation."""

    def event(self, event: Event) -> None:
        """Tell an event."""

    def close(self) -> None:
        """Nothing will be told any more."""


class Telemetry:
    """Tells of a run in its log, in TensorBoard and in the terminal. On ranks that do not write, it does nothing.

    Opening it writes the event `start`, or `resume` when it begins behind step 0; leaving it by an exception writes
    `failed`.

    Args:
        directory: folder of the run.
        logging: what is told, and how often.
        train_iters: the run's last step.
        is_writer: whether this rank tells of the run; one rank does.
        resumed_step: steps that the run had done when this process took it up.
        speed: what makes FLOP/s and MFU of tokens a second.

    Raises:
        UserError: when the folder cannot be written.
    """

    def __init__(
        self,
        directory: Path,
        logging: LoggingConfig,
        train_iters: int,
        is_writer: bool,
        resumed_step: int = 0,
        speed: ModelSpeed | None = None,
    ) -> None:
        self._step, self._speed = resumed_step, speed or ModelSpeed()
        self._meter = StepMeter(train_iters)
        self._writers: list[Writer] = []
        if is_writer:
            self._log = _open_log(directory)
            self._writers.append(self._log)
            if logging.tensorboard:
                self._writers.append(_open_tensorboard(directory, resumed_step))
            self._writers.append(Console(train_iters, resumed_step, logging.log_interval, logging.progress_bar))
            self._tell_the_beginning(train_iters)

    def after_step(self, step: int, values: Mapping[str, float], tokens: int) -> None:
        """Tell of a training step.

        Args:
            step: how many steps the run has done, this one included.
            values: what the step gave, such as `loss`, `learning_rate`, `grad_norm`, `energy/distance_samples`.
            tokens: how many tokens the whole run has consumed, this step included.
        """
        if not self._writers:
            return
        self._step = step
        measures = self._meter.after_step(step, tokens)
        named = _named(measures) | self._speed.named(measures.tokens_per_second)
        record = Record("train", step, time.time(), _floats(values) | {"tokens": float(tokens)} | named)
        for writer in self._writers:
            writer.record(record)

    def validation(self, step: int, values: Mapping[str, float]) -> None:
        """Tell of a validation that has just ended. Its time does not count as training."""
        if not self._writers:
            return
        seconds = self._meter.restart_clock()
        record = Record("validation", step, time.time(), _floats(values) | {"speed/validation_seconds": seconds})
        for writer in self._writers:
            writer.record(record)

    def event(self, kind: str, message: str, **facts: Any) -> None:
        """Tell that something happened between two steps: a checkpoint, a stop signal.

        The time since the last step does not count as training.

        Args:
            kind: one word for programs, such as `checkpoint`.
            message: one sentence for a person.
            facts: what belongs to it, for programs and for the report (`parameters=371_000_000`).
        """
        self._meter.restart_clock()
        event = Event(kind, self._step, time.time(), message, facts)
        for writer in self._writers:
            writer.event(event)

    def close(self) -> None:
        """Write out everything. Closing twice does no harm."""
        while self._writers:
            self._writers.pop().close()

    def __enter__(self) -> Self:
        """Hand out this object."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Note in the log what error ended the run, if one did, and close."""
        if error is not None and self._writers:
            # To the log only: whoever catches the error shows it to the user.
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}".removesuffix(": ")
            self._log.event(Event("failed", self._step, time.time(), text, {}))
        self.close()

    def _tell_the_beginning(self, train_iters: int) -> None:
        kind = "resume" if self._step else "start"
        message = f"from step {self._step} to {train_iters}"
        self.event(kind, message, train_iters=train_iters, environment=describe_environment())


def _named(measures: StepMeasures) -> dict[str, float]:
    named = {
        "speed/seconds_per_step": measures.seconds,
        "speed/tokens_per_second": measures.tokens_per_second,
        "speed/seconds_left": measures.seconds_left,
        "memory/host_gib": measures.host_gib,
        "memory/gpu_gib": measures.gpu_gib,
        "memory/host_peak_gib": measures.host_peak_gib,
        "memory/gpu_peak_gib": measures.gpu_peak_gib,
    }
    return {name: value for name, value in named.items() if value is not None}


def _floats(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


def _open_log(directory: Path) -> LogFile:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return LogFile(directory / FILE_NAME)
    except OSError as error:
        raise UserError(
            f"the run's log cannot be written: {error.strerror}",
            str(directory),
            "choose another run.directory, or make it writable",
        ) from error


def _open_tensorboard(directory: Path, resumed_step: int) -> Writer:
    # Imported here because it takes a second, which the other ranks and runs without TensorBoard need not wait for.
    try:
        from calm_megatron.telemetry.tensorboard import TensorBoard
    except ModuleNotFoundError as error:
        raise UserError(
            f"TensorBoard scalars are wanted, but this Python has no {error.name}",
            "logging.tensorboard",
            "install tensorboard, or set logging.tensorboard=false",
        ) from error
    return TensorBoard(directory, resumed_step)
