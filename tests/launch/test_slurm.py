"""The example scripts, as written, on a real Slurm of two nodes: whatever happens to a job, the run ends the same.

A Slurm on one machine will do: two nodes of it, each with two free cores or more.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from calm_megatron.checkpoint.load import saved_state
from calm_megatron.checkpoint.pieces import KINDS
from calm_megatron.launch.story import Outcome, Story, newest_step
from calm_megatron.telemetry.run_log import read_log
from tests.small_runs import ROOT, VOCABULARY

STEPS, MANY_STEPS = 80, 1200
"""Of most runs, and of those that a time limit ends: Slurm looks at its clock every half minute."""
PATIENCE = 3600
"""Seconds for a run on a machine that does much else."""
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "GONE")
COMMON = [
    f"model.vocab_size={VOCABULARY}", "model.hidden_size=32", "model.ffn_hidden_size=64", "model.latent_size=16",
    "data.seq_length=64", "data.split='80,10,10'", "optimizer.lr=1e-3", "optimizer.lr_warmup_iters=3",
    "train.precision=fp32", "train.global_batch_size=8", "train.micro_batch_size=2",
    "evaluation.eval_interval=0", "evaluation.final_eval_iters=2", "logging.tensorboard=false",
    "logging.log_interval=50",
]  # fmt: skip
CALM = [
    *COMMON, "model.num_layers=2", "model.num_attention_heads=4", "model.head.num_layers=2",
    "model.head.num_samples=4", "model.head.num_target_samples=10",
    "checkpoint.save_interval=10",
]  # fmt: skip


def asked(*words: str) -> str:
    """What one of Slurm's programs answers."""
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def idle_nodes() -> list[str]:
    """Names of nodes that stand ready."""
    return asked("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split()


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2 * PATIENCE),
    pytest.mark.skipif(shutil.which("sbatch") is None, reason="there is no Slurm on this machine: no sbatch"),
]


class Job:
    """An example script on two nodes of two ranks; cancelled at the end."""

    def __init__(self, script: str, run: Path, *settings: str, nodes: int = 2) -> None:
        self.run = run
        run.mkdir()
        environment = {
            **os.environ, "VIRTUAL_ENVIRONMENT": sys.prefix, "RANKS_PER_NODE": "2", "RENDEZVOUS_HOST": "127.0.0.1",
            "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
        words = [
            "sbatch", "--parsable", f"--nodes={nodes}", "--gpus-per-node=0", "--cpus-per-task=2",
            f"--output={run / 'output.txt'}", str(ROOT / "examples" / "slurm" / script), f"run.directory={run}",
            *settings,
        ]  # fmt: skip
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        self.number = done.stdout.strip()

    @property
    def state(self) -> str:
        """In Slurm's words; GONE when it has forgotten the job, and UNKNOWN while it does not answer."""
        words = ["squeue", "-h", "-j", self.number, "-t", "all", "-o", "%T"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            return "GONE" if "Invalid job id" in done.stderr else "UNKNOWN"
        return done.stdout.strip() or "GONE"

    @property
    def has_ended(self) -> bool:
        """Whether Slurm has no more to do for it. A job that goes back into the queue looks so too, for a moment."""
        if self.state not in ENDED:
            return False
        time.sleep(3)
        return self.state in ENDED

    @property
    def output(self) -> str:
        """What the job has printed, for a failed assertion."""
        return (self.run / "output.txt").read_text()[-3000:]

    def wait(self, condition: Callable[[], object]) -> None:
        """Until the condition holds; a job that waits for its turn gets it at once."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, self.output
            if self.state == "PENDING":
                # Slurm lets a requeued job wait for two minutes; and a test may have shortened its time.
                asked("scontrol", "update", f"JobId={self.number}", "StartTime=now", "TimeLimit=1-00:00:00")
            time.sleep(0.2)

    def wait_for_step(self, step: int) -> None:
        """Until a checkpoint of this step or a later one is there."""
        self.wait(lambda: newest_step(self.run) >= step or self.has_ended)
        assert self.state == "RUNNING", self.output

    def wait_for_the_end(self) -> list[Outcome | None]:
        """Until Slurm has no more to do; returns how each attempt ended."""
        self.wait(lambda: self.has_ended)
        return [outcome for _, outcome in Story(self.run, "").past()]

    def cancel(self) -> None:
        """Leave nothing behind."""
        asked("scancel", self.number)
        self.wait(lambda: self.has_ended)

    def processes(self, *words: str) -> list[int]:
        """Of this job, with all of these words in their command line."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                given, environment = path.read_bytes(), (path.parent / "environ").read_bytes()
            except OSError:  # it has ended
                continue
            mine = f"\0SLURM_JOB_ID={self.number}\0".encode() in environment
            if mine and all(word.encode() in given for word in words):
                found.append(int(path.parent.name))
        return found


@pytest.fixture
def submit(tmp_path: Path, calm_settings: list[str]) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def start(steps: int = STEPS) -> Job:
        settings = [*calm_settings, f"train.train_iters={steps}"]
        jobs.append(Job("calm_m.sbatch", tmp_path / "run", *settings))
        return jobs[-1]

    yield start
    for job in jobs:
        job.cancel()


@pytest.fixture(scope="module")
def calm_settings(tmp_path_factory: pytest.TempPathFactory, small_corpus: Path) -> list[str]:
    """Of a small CALM, with an autoencoder that a Slurm job has trained."""
    if len(idle_nodes()) < 2:
        pytest.skip(f"two idle nodes are needed, sinfo shows {idle_nodes()}")
    run = tmp_path_factory.mktemp("slurm") / "ae"
    job = Job("ae_75m.sbatch", run, *COMMON, f"data.data_path={small_corpus}", "train.train_iters=20", nodes=1)
    assert [outcome.kind for outcome in job.wait_for_the_end() if outcome] == ["finished"], job.output
    return [*CALM, f"data.data_path={small_corpus}", f"model.autoencoder={run}"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, calm_settings: list[str]) -> Path:
    """The run to which nothing happened."""
    return left_alone(tmp_path_factory.mktemp("straight") / "run", calm_settings, STEPS)


def left_alone(run: Path, settings: list[str], steps: int) -> Path:
    """A run to its end in one attempt."""
    job = Job("calm_m.sbatch", run, *settings, f"train.train_iters={steps}")
    assert [outcome.kind for outcome in job.wait_for_the_end() if outcome] == ["finished"], job.output
    return run


def demand_the_same(run: Path, straight: Path, steps: int = STEPS) -> None:
    """Weights and moments at the end, to the last bit, and one curve of losses over all attempts."""
    first, second = (saved_state(folder / "checkpoints" / f"step_{steps:08d}") for folder in (run, straight))
    assert first.names() == second.names()
    for name in first.names():
        for kind in KINDS:
            assert torch.equal(first.whole(kind, name), second.whole(kind, name)), f"{kind} of {name}"
    ours, theirs = (read_log(folder / "log.jsonl").series("loss") for folder in (run, straight))
    assert ours == theirs and len(ours[0]) == steps


def test_usr1_saves_and_the_job_goes_back_into_the_queue(submit: Callable[..., Job], straight: Path) -> None:
    job = submit()
    job.wait_for_step(20)
    asked("scancel", "--signal=USR1", job.number)
    stopped, finished = job.wait_for_the_end()
    assert stopped and stopped.kind == "stopped" and 20 <= stopped.step < STEPS, job.output
    assert finished and finished.kind == "finished"
    assert "stopped by SIGUSR1" in next(e for e in read_log(job.run / "log.jsonl").events if e.kind == "stop").message
    demand_the_same(job.run, straight)


def test_a_requeued_job_goes_on(submit: Callable[..., Job], straight: Path) -> None:
    job = submit()
    job.wait_for_step(20)
    asked("scontrol", "requeue", job.number)
    *_, finished = job.wait_for_the_end()
    assert finished and finished.kind == "finished", job.output
    demand_the_same(job.run, straight)


@pytest.mark.parametrize("victim", ["rank", "launcher"])
def test_what_is_killed_is_started_again_and_named(submit: Callable[..., Job], straight: Path, victim: str) -> None:
    job = submit()
    job.wait_for_step(20)
    launchers = job.processes("calm_megatron.launch.node", "-m")
    launchers = [pid for pid in launchers if b"srun" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
    node_of = {pid: node_name(pid) for pid in launchers}
    assert sorted(node_of.values()) == sorted(set(node_of.values())) and len(node_of) == 2
    chosen = launchers[-1]
    killed = children(chosen)[0] if victim == "rank" else chosen
    orphans = children(chosen)
    os.kill(killed, signal.SIGKILL)
    crashed, finished = job.wait_for_the_end()
    assert crashed and crashed.kind == "crashed" and crashed.suspect == node_of[chosen], job.output
    assert ("SIGKILL first" if victim == "rank" else "its launcher was killed") in crashed.reason
    assert finished and finished.kind == "finished", job.output
    assert not [pid for pid in orphans if Path(f"/proc/{pid}").exists()]
    demand_the_same(job.run, straight)


def children(process: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def node_name(process: int) -> str:
    variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return next(each.partition(b"=")[2].decode() for each in variables if each.startswith(b"SLURMD_NODENAME="))


def test_the_time_limit_is_only_a_pause(submit: Callable[..., Job], calm_settings: list[str], tmp_path: Path) -> None:
    job = submit(MANY_STEPS)
    job.wait_for_step(20)
    # As near as the warning reaches: 300 seconds in the script.
    minutes = 2 + int(asked("squeue", "-h", "-j", job.number, "-o", "%M").split(":")[-2])
    asked("scontrol", "update", f"JobId={job.number}", f"TimeLimit={minutes}")
    stopped, *_, finished = job.wait_for_the_end()
    assert stopped and stopped.kind == "stopped" and 20 <= stopped.step < MANY_STEPS, job.output
    assert finished and finished.kind == "finished"
    demand_the_same(job.run, left_alone(tmp_path / "straight", calm_settings, MANY_STEPS), MANY_STEPS)
