"""What a run loses when it is killed, hangs, or finds its disk full: nothing that was saved."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from calm_megatron.checkpoint.load import find_checkpoint, saved_state
from calm_megatron.checkpoint.pieces import KINDS
from calm_megatron.checkpoint.store import published, step_of
from calm_megatron.telemetry.run_log import read_log
from tests.small_runs import AR, ROOT, settings

FAULTS = ROOT / "tests" / "train" / "health_worker.py"
STEPS = 60
PATIENCE = 900
"""Seconds for a run that nobody kills, on a machine that does much else."""


def command(script: Path, *words: str | Path) -> list[str]:
    """On two ranks under torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*launcher, str(script), *map(str, words)]


def jobs(folder: Path, overrides: list[str], fault: str = "") -> Path:
    """The file that the worker reads."""
    file = folder / "jobs.json"
    file.write_text(json.dumps([{"overrides": overrides, "fault": fault}]))
    return file


def start(words: list[str], output: Path) -> subprocess.Popen[bytes]:
    """In the background."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with output.open("ab") as file:
        return subprocess.Popen(words, stdout=file, stderr=file, env=environment)


def ranks_of(launcher: int) -> list[int]:
    """Processes that torchrun has started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(child) for child in children]


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left: the ranks, which are no children of ours, and the launcher."""
    if process.poll() is None:
        for rank in [*ranks_of(process.pid), process.pid]:
            os.kill(rank, signal.SIGKILL)
        process.wait()


def overrides_of(run: Path, corpus: Path, **changes: object) -> list[str]:
    """Saves every two steps, in the background, on two data ranks under ZeRO 1."""
    common = {"train__train_iters": STEPS, "optimizer__lr_decay_iters": STEPS, "checkpoint__save_interval": 2}
    changes = {**common, "parallel__zero_stage": 1, "logging__tensorboard": False, **changes}
    return settings(AR, run__directory=run, data__data_path=corpus, **changes)


def demand_equal_states(ours: Path, theirs: Path) -> None:
    """Weights and moments of the newest checkpoints, to the last bit."""
    first, second = saved_state(find_checkpoint(ours)), saved_state(find_checkpoint(theirs))
    assert find_checkpoint(ours).name == find_checkpoint(theirs).name == f"step_{STEPS:08d}"
    assert first.names() == second.names()
    for name in first.names():
        for kind in KINDS:
            assert torch.equal(first.whole(kind, name), second.whole(kind, name)), f"{kind} of {name}"


def killed_in_a_save(run: Path, process: subprocess.Popen[bytes], dice: random.Random) -> bool:
    """Kill a rank while a checkpoint is half written, after some that are whole; false if none was or the run ended."""
    # One at least is of this attempt: what an earlier one left half written is gone by then.
    wanted = newest_step(run) + 2 * dice.randint(1, 4)
    while process.poll() is None:
        if newest_step(run) < wanted:
            time.sleep(0.002)
            continue
        victim = dice.choice(ranks_of(process.pid))
        while not (partial := list((run / "checkpoints").glob(".step_*.partial"))) and process.poll() is None:
            pass
        time.sleep(dice.random() * 0.01)
        os.kill(victim, signal.SIGKILL)
        return any(path.exists() for path in partial)
    return False


def newest_step(run: Path) -> int:
    """Of the checkpoints that are published."""
    return max(map(step_of, published(run / "checkpoints")), default=0)


def killed_at_any_time(process: subprocess.Popen[bytes], dice: random.Random) -> None:
    """Kill a rank at some moment of start-up, training or the end."""
    time.sleep(dice.uniform(1, 15))
    if process.poll() is None and (victims := ranks_of(process.pid)):
        os.kill(dice.choice(victims), signal.SIGKILL)


@pytest.mark.parametrize(
    "kills",
    [2, pytest.param(20, marks=pytest.mark.slow)],
)
def test_kills_at_any_moment_change_nothing(tmp_path: Path, small_corpus: Path, kills: int) -> None:
    straight, run, dice = tmp_path / "straight", tmp_path / "run", random.Random(kills)

    def wide(folder: Path) -> list[str]:
        """Its checkpoints have 10 MB, so that writing one takes a while."""
        return overrides_of(folder, small_corpus, model__ffn_hidden_size=2048)

    whole = start(command(FAULTS, jobs(tmp_path, wide(straight))), tmp_path / "straight.txt")
    try:
        assert whole.wait(timeout=PATIENCE) == 0, (tmp_path / "straight.txt").read_text()[-3000:]
    finally:
        end(whole)
    file, inside, report = jobs(tmp_path, wide(run)), 0, []
    for kill in range(kills):
        process = start(command(FAULTS, file), tmp_path / "killed.txt")
        try:
            if kill % 2 == 0:
                hit = killed_in_a_save(run, process, dice)
                inside += hit
            else:
                killed_at_any_time(process, dice)
            process.wait(timeout=PATIENCE)
        finally:
            end(process)
        saved = published(run / "checkpoints")
        where = "inside a save" if kill % 2 == 0 and hit else "elsewhere"
        report.append(f"kill {kill + 1}, {where}: newest checkpoint {saved[-1].name if saved else 'none'}")
        if saved and saved[-1].name == f"step_{STEPS:08d}":
            shutil.rmtree(run)  # it came to its end; begin again, so that kills have something to hit
    last = start(command(FAULTS, file), tmp_path / "last.txt")
    try:
        assert last.wait(timeout=PATIENCE) == 0, (tmp_path / "last.txt").read_text()[-3000:]
    finally:
        end(last)
    print("\n".join(report))
    assert inside >= kills / 4, f"only {inside} of {kills} kills fell into a save"
    assert "damage" not in [event.kind for event in read_log(run / "log.jsonl").events]
    demand_equal_states(run, straight)


@pytest.mark.slow
def test_sigterm_to_the_launcher_saves(tmp_path: Path, small_corpus: Path) -> None:
    run = tmp_path / "run"
    file = jobs(tmp_path, overrides_of(run, small_corpus, train__train_iters=100_000, checkpoint__save_interval=0))
    process = start(command(FAULTS, file), tmp_path / "output.txt")
    try:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and not read_steps(run):
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=PATIENCE)
    finally:
        end(process)
    assert read_log(run / "log.jsonl").events[-1].kind == "stop"
    assert find_checkpoint(run).name == f"step_{int(read_steps(run)[-1]):08d}"


def read_steps(run: Path) -> list[float]:
    """Steps in the log."""
    log = run / "log.jsonl"
    return list(read_log(log).series("loss")[0]) if log.exists() else []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte, where this machine lets us mount one."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("asynchronous", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_full_disk_ends_the_run_and_keeps_what_was_saved(
    tmp_path: Path, small_corpus: Path, small_disk: Path, asynchronous: bool
) -> None:
    run = tmp_path / "run"
    changes = {"checkpoint__async_save": asynchronous, "checkpoint__keep_last": 100}
    file = jobs(tmp_path, overrides_of(run, small_corpus, train__train_iters=12, **changes))
    process = start(command(FAULTS, file), tmp_path / "output.txt")
    try:
        assert process.wait(timeout=PATIENCE) != 0
    finally:
        end(process)
    output = (tmp_path / "output.txt").read_text()
    assert output.count("error: the checkpoint could not be written") == 1
    assert "No space left on device" in output and "earlier checkpoints are intact" in output
    before = published(small_disk)
    assert before and saved_state(before[-1]).names()
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    again = start(command(FAULTS, file), tmp_path / "again.txt")
    try:
        assert again.wait(timeout=PATIENCE) == 0, (tmp_path / "again.txt").read_text()[-3000:]
    finally:
        end(again)
    assert published(small_disk)[-1].name == "step_00000012"
    assert not list(small_disk.glob(".step_*.partial"))


@pytest.mark.slow
def test_a_rank_that_hangs_is_ended_and_leaves_its_stack(tmp_path: Path, small_corpus: Path) -> None:
    run = tmp_path / "run"
    file = jobs(tmp_path, overrides_of(run, small_corpus, parallel__distributed_timeout_minutes=0.5), fault="hang")
    process = start(command(FAULTS, file), tmp_path / "output.txt")
    try:
        assert process.wait(timeout=PATIENCE) != 0
    finally:
        end(process)
    stack = (run / "stacks" / "rank_00001.txt").read_text()
    assert stack.startswith("rank 1, process") and "no step for 0.5 minutes" in stack
    assert "health_worker.py" in stack and "in forward" in stack
    assert published(run / "checkpoints")[-1].name == "step_00000002"
