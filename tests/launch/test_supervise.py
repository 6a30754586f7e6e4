"""A supervisor around real commands, without Slurm: what is tried again, what is not, and what the log says of it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from calm_megatron.launch.story import Outcome, Story, newest_step
from calm_megatron.launch.words import Failure, Word, judge
from calm_megatron.telemetry.run_log import read_log
from tests.small_runs import ROOT

SUPERVISE = (
    "from calm_megatron.launch.supervise import *; run_command_line(lambda: Supervisor(sys.argv[1:], {pause}).main())"
)
SAVES = "import pathlib, sys; run = pathlib.Path(sys.argv[1].partition('=')[2]) / 'checkpoints'\n"
"""Begins a program that is given `run.directory=...`."""


def supervise(run: Path, program: str, *, python: tuple[str, ...] = (), pause: float = 0.01) -> subprocess.Popen[str]:
    """Start a supervisor around a program in Python."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SAVES + program, f"run.directory={run}"]
    words = [sys.executable, *python, "-c", SUPERVISE.format(pause=pause), *command]
    return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)


def kinds(run: Path) -> list[str]:
    return [outcome.kind if outcome else "none" for _, outcome in Story(run, "").past()]


def test_a_run_that_gets_nowhere_is_given_up_and_the_node_named(tmp_path: Path) -> None:
    process = supervise(tmp_path, "sys.exit(1)")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: 3 starts in a row gave no newer checkpoint than step 0" in errors
    assert f"{os.uname().nodename} (3 of 3)" in errors
    assert kinds(tmp_path) == ["crashed"] * 3


def test_progress_lets_it_go_on_and_starts_are_told_in_the_log(tmp_path: Path) -> None:
    # Two starts in a row without a checkpoint, then one with, and again: never three in a row.
    program = """
run.mkdir(exist_ok=True)
tries = run.parent / 'tries'
n = int(tries.read_text()) + 1 if tries.exists() else 1
tries.write_text(str(n))
if n % 3 == 0: (run / f'step_{n:08d}').mkdir()
sys.exit(0 if n == 9 else 1)
"""
    process = supervise(tmp_path, program)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert kinds(tmp_path) == ["crashed"] * 8 + ["finished"]
    assert [attempt.step for attempt, _ in Story(tmp_path, "").past()] == [0, 0, 0, 3, 3, 3, 6, 6, 6]
    log = read_log(tmp_path / "log.jsonl")
    assert [event.kind for event in log.events] == ["attempt", "outcome"] * 9
    assert log.wall_seconds == 0, "no process of the run was alive"


@pytest.mark.parametrize(("code", "ends_with"), [(2, 2), (75, 75)])
def test_some_ends_are_not_tried_again(tmp_path: Path, code: int, ends_with: int) -> None:
    process = supervise(tmp_path, f"sys.exit({code})")
    process.communicate(timeout=60)
    assert process.returncode == ends_with
    assert kinds(tmp_path) == ["mistake" if code == 2 else "stopped"]


@pytest.mark.parametrize(("sent", "kind"), [(signal.SIGUSR1, "stopped"), (signal.SIGTERM, "ended")])
def test_a_signal_reaches_the_command(tmp_path: Path, sent: signal.Signals, kind: str) -> None:
    program = """
import signal, time
for number in (signal.SIGUSR1, signal.SIGTERM): signal.signal(number, lambda *_: sys.exit(75))
run.mkdir()
time.sleep(60)
"""
    process = supervise(tmp_path, program)
    while not (tmp_path / "checkpoints").exists():
        time.sleep(0.05)
    process.send_signal(sent)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert kinds(tmp_path) == [kind]


def test_a_signal_between_two_starts_ends_it(tmp_path: Path) -> None:
    process = supervise(tmp_path, "sys.exit(1)", pause=50)
    while not kinds(tmp_path) or kinds(tmp_path)[0] == "none":
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 75 and kinds(tmp_path) == ["crashed"]


def test_the_supervisor_needs_python_alone(tmp_path: Path) -> None:
    process = supervise(tmp_path, "sys.exit(0)", python=("-S",))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


def test_an_attempt_that_went_with_its_job_is_no_failure(tmp_path: Path) -> None:
    for _ in range(4):
        Story(tmp_path, "job 1").begin(("a",))
    story = Story(tmp_path, "job 1")
    assert story.without_progress() == []
    assert sum("ended from outside" in e.message for e in read_log(tmp_path / "log.jsonl").events) == 3
    story.end(Outcome("ended", 143, "SIGTERM ended the job"))
    assert story.without_progress() == []
    story.begin(("a",))
    story.end(Outcome("crashed", 1, "x", "a", 0))
    story.begin(("a",))
    assert [outcome.kind for outcome in story.without_progress()] == ["crashed"]
    assert Story(tmp_path, "job 2").without_progress() == [], "a new submission begins anew"


def test_half_a_line_does_no_harm(tmp_path: Path) -> None:
    story = Story(tmp_path, "job 1")
    story.begin(("a",))
    with (tmp_path / "log.jsonl").open("ab") as log:
        log.write(b'{"kind":"event","event":"outcome","outcome":{"ki')
    assert [attempt.number for attempt, _ in Story(tmp_path, "job 1").past()] == [1]
    assert story.begin(("a",)).number == 2
    assert [attempt.number for attempt, _ in Story(tmp_path, "job 1").past()] == [1, 2]


KILLED, ENDED, LOST, STOPPED, MISTAKE = -9, -15, 69, 75, 2


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        ([Word("a", 0), Word("b", 0)], 0, ("finished", None)),
        ([Word("a", 75, (Failure(0, STOPPED, 1),)), Word("b", 75, (Failure(2, STOPPED, 2),))], 75, ("stopped", None)),
        ([Word("a", 69, (Failure(0, LOST, 1),)), Word("b", 137, (Failure(2, KILLED, 3),))], 137, ("crashed", "b")),
        ([Word("a", 69, (Failure(0, LOST, 1), Failure(1, ENDED, 2)))], 137, ("crashed", "b")),
        ([Word("a", 2, (Failure(0, MISTAKE, 1),)), Word("b", 69, (Failure(2, LOST, 0),))], 69, ("mistake", "a")),
        ([Word("a", 1, (Failure(0, 1, 5),)), Word("b", 2, (Failure(2, MISTAKE, 6),))], 2, ("crashed", "a")),
        ([Word("a", 143, error="the launcher got SIGTERM"), Word("b", 143)], 143, ("stopped", None)),
        ([Word("a", 1, error="no rendezvous"), Word("b", 1)], 1, ("crashed", "a")),
    ],
)
def test_judgements(words: list[Word], code: int, expected: tuple[str, str | None]) -> None:
    outcome = judge(words, ("a", "b"), code, step=7)
    assert (outcome.kind, outcome.suspect, outcome.step) == (*expected, 7)


def test_a_node_tells_how_its_ranks_ended(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, time\nif os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CALM_ATTEMPT_FOLDER": str(tmp_path)}
    node = [sys.executable, "-m", "calm_megatron.launch.node", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(node, env=environment, capture_output=True, timeout=120, check=False)
    assert done.returncode == 137
    (path,) = tmp_path.glob("*.json")
    word = Word.read(path)
    assert word.code == 137 and [(failure.rank, failure.code) for failure in word.failures][:1] == [(1, -9)]


def test_the_newest_step_is_that_of_a_published_checkpoint(tmp_path: Path) -> None:
    for name in ("step_00000010", "step_00000200", ".step_00000300.partial", "damaged_step_00000400"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert newest_step(tmp_path) == 200
