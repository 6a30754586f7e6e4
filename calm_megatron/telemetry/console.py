"""What a person reads in the terminal: one aligned line every few steps, and a progress bar with the time left."""

import sys
from typing import TextIO

from tqdm import tqdm

from calm_megatron.telemetry import formats
from calm_megatron.telemetry.run_log import Event, Record

COLUMNS = (
    ("loss", "loss"),
    ("energy/distance_targets", "target"),
    ("energy/distance_samples", "spread"),
    ("diffusion/noise_error", "noise"),
    ("diffusion/variational_bound", "bound"),
    ("autoencoder/cross_entropy", "ce"),
    ("autoencoder/kl", "kl"),
    ("grad_norm", "grad"),
)
"""Values that get a column, with its label: `target` is the distance of the samples to the target, `spread` that among
the samples, `noise` and `bound` are the parts of a diffusion loss, `ce` the cross-entropy. All other values are in the
log and in TensorBoard."""


def step_line(record: Record, train_iters: int) -> str:
    """The line of a training step, in columns that stay in place from step to step."""
    values = record.values
    cells = [_place("step", record.step, train_iters)]
    cells += [f"{label} {formats.fixed(values[name])}" for name, label in COLUMNS if name in values]
    if "learning_rate" in values:
        cells.append(f"lr {values['learning_rate']:.2e}")
    cells.append(f"{formats.count(values.get('speed/tokens_per_second')):>6} tok/s")
    cells.append(f"{formats.duration(values.get('speed/seconds_left')):>7} left")
    return "  ".join(cells)


def validation_line(record: Record, train_iters: int) -> str:
    """The line of a validation: its main values; those of a group (`group/name`) are in the files only."""
    cells = [_place("valid", record.step, train_iters)]
    main = {name: value for name, value in record.values.items() if "/" not in name}
    cells += [f"{name.replace('_', ' ')} {formats.fixed(value).strip()}" for name, value in main.items()]
    return "  ".join(cells)


def event_line(event: Event, train_iters: int) -> str:
    """The line of an event."""
    return f"{_place('event', event.step, train_iters)}  {event.kind.replace('_', ' ')}: {event.message}"


class Console:
    """Prints lines to stdout and, on a terminal, keeps a progress bar on stderr.

    Args:
        train_iters: the run's last step.
        resumed_step: the step that the bar begins at.
        log_interval: steps between lines.
        progress_bar: whether a bar is wanted; it is left out where stderr is no terminal.
        stream: where lines go; none means stdout.
    """

    def __init__(
        self, train_iters: int, resumed_step: int, log_interval: int, progress_bar: bool, stream: TextIO | None = None
    ) -> None:
        self._train_iters = train_iters
        self._log_interval = log_interval
        self._stream = stream
        self._bar = tqdm(
            total=train_iters,
            initial=resumed_step,
            disable=not (progress_bar and sys.stderr.isatty()),
            dynamic_ncols=True,
            leave=False,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {postfix}",
        )

    def record(self, record: Record) -> None:
        """Move the bar; print the line where one is due."""
        if record.kind == "validation":
            self._print(validation_line(record, self._train_iters))
            return
        self._bar.set_postfix_str(f"{formats.duration(record.values.get('speed/seconds_left'))} left", refresh=False)
        self._bar.update(record.step - self._bar.n)
        if record.step % self._log_interval == 0 or record.step == self._train_iters:
            self._print(step_line(record, self._train_iters))

    def event(self, event: Event) -> None:
        """Print the line of an event."""
        self._print(event_line(event, self._train_iters))

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()

    def _print(self, line: str) -> None:
        stream = self._stream or sys.stdout
        tqdm.write(line, file=stream)
        stream.flush()  # a redirected stdout is buffered, and a killed run would take its last lines along


def _place(label: str, step: int, train_iters: int) -> str:
    return f"{label:<5} {step:>{len(str(train_iters))}}/{train_iters}"
