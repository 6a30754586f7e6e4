"""What the training loop tells arrives in the log and in TensorBoard, once, and only from the rank that writes."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import LoggingConfig
from calm_megatron.telemetry.run_log import read_log
from calm_megatron.telemetry.writers import Telemetry

LOGGING = LoggingConfig(log_interval=2, progress_bar=False)


def train(directory: Path, first: int, last: int, offset: float = 0.0) -> None:
    """One process of a run of 8 steps; loss = step + offset."""
    with Telemetry(directory, LOGGING, train_iters=8, is_writer=True, resumed_step=first - 1) as telemetry:
        for step in range(first, last + 1):
            telemetry.after_step(step, {"loss": step + offset, "energy/distance_samples": 2.0}, tokens=100 * step)
            if step % 4 == 0:
                telemetry.validation(step, {"brierlm": step / 2 + offset})
                telemetry.event("checkpoint", f"saved step {step}", path=directory / "checkpoints")


def scalars(directory: Path, tag: str) -> list[tuple[int, float]]:
    """Steps and values as TensorBoard shows them."""
    events = EventAccumulator(str(directory / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_has_every_step_once_after_a_resume(tmp_path: Path) -> None:
    train(tmp_path, 1, 6)
    train(tmp_path, 5, 8, offset=0.5)
    assert scalars(tmp_path, "train/loss") == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5.5), (6, 6.5), (7, 7.5), (8, 8.5)]
    assert scalars(tmp_path, "train/energy/distance_samples") == [(step, 2.0) for step in range(1, 9)]
    assert scalars(tmp_path, "validation/brierlm") == [(4, 2.0), (8, 4.5)]
    assert [step for step, _ in scalars(tmp_path, "memory/host_peak_gib")] == list(range(1, 9))
    assert [step for step, _ in scalars(tmp_path, "speed/tokens_per_second")] == [2, 3, 4, 6, 7, 8], (
        "each first step is left out"
    )


def test_the_log_holds_the_same_run(tmp_path: Path) -> None:
    train(tmp_path, 1, 6)
    train(tmp_path, 5, 8, offset=0.5)
    log = read_log(tmp_path / "log.jsonl")
    assert log.series("loss") == ([1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5.5, 6.5, 7.5, 8.5])
    assert log.series("tokens") == (list(range(1, 9)), [100.0 * step for step in range(1, 9)])
    assert [(event.kind, event.step) for event in log.events] == [
        ("start", 0),
        ("checkpoint", 4),
        ("resume", 4),
        ("checkpoint", 8),
    ]
    assert log.fact("path") == str(tmp_path / "checkpoints")
    assert log.fact("environment")["ranks"] == "1"
    assert log.fact("train_iters") == 8


def test_lines_are_in_the_file_before_the_run_ends(tmp_path: Path) -> None:
    with Telemetry(tmp_path, LOGGING, train_iters=8, is_writer=True) as telemetry:
        telemetry.after_step(1, {"loss": 3.0}, tokens=10)
        assert read_log(tmp_path / "log.jsonl").series("loss") == ([1], [3.0])


def test_other_ranks_do_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "run"
    with Telemetry(directory, LOGGING, train_iters=4, is_writer=False) as telemetry:
        telemetry.after_step(2, {"loss": 1.0}, tokens=10)
        telemetry.validation(2, {"loss": 1.0})
        telemetry.event("checkpoint", "saved")
    assert not directory.exists()
    assert capsys.readouterr() == ("", "")


def test_an_error_is_noted_and_passes(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="NaN"),
        Telemetry(tmp_path, LOGGING, train_iters=8, is_writer=True) as telemetry,
    ):
        telemetry.after_step(3, {"loss": float("nan")}, tokens=10)
        raise UserError("the loss is NaN", "step 3")
    last = read_log(tmp_path / "log.jsonl").events[-1]
    assert (last.kind, last.step) == ("failed", 3)
    assert "the loss is NaN" in last.message


def test_tensorboard_can_be_left_out(tmp_path: Path) -> None:
    with Telemetry(
        tmp_path, LoggingConfig(tensorboard=False, progress_bar=False), train_iters=1, is_writer=True
    ) as telemetry:
        telemetry.after_step(1, {"loss": 1.0}, tokens=1)
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_folder_that_cannot_be_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match="log cannot be written"):
        Telemetry(tmp_path / "run", LOGGING, train_iters=1, is_writer=True)


PROGRAM = """
import sys
from pathlib import Path
from calm_megatron.config.schema import LoggingConfig
from calm_megatron.telemetry.writers import Telemetry
logging = LoggingConfig(log_interval=2, tensorboard=False, progress_bar=sys.argv[2] == "bar")
with Telemetry(Path(sys.argv[1]), logging, train_iters=4, is_writer=True, resumed_step=1) as telemetry:
    for step in range(2, 5):
        telemetry.after_step(step, {"loss": 1.0}, tokens=step)
"""


@pytest.mark.parametrize("wanted", ["bar", "none"])
def test_the_bar_is_on_the_terminal_only_and_the_lines_are_whole(tmp_path: Path, wanted: str) -> None:
    terminal, stderr = pty.openpty()
    fcntl.ioctl(stderr, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    os.set_blocking(terminal, False)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), wanted]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, check=True)
    try:
        drawn = os.read(terminal, 65536).decode()
    except BlockingIOError:  # nothing was drawn
        drawn = ""
    os.close(stderr)
    os.close(terminal)
    assert ("1/4" in drawn and "%|" in drawn) == (wanted == "bar")
    lines = done.stdout.splitlines()
    assert [line[:10] for line in lines] == ["event 1/4 ", "step  2/4 ", "step  4/4 "]
    assert "\r" not in done.stdout
