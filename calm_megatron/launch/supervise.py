"""Runs a command that trains, again and again until the run is done, and keeps a bad start from being tried for ever.

Usage, as the last line of a Slurm batch script:

    exec python -m calm_megatron.launch.supervise srun ... pretrain_calm.py ... run.directory=runs/x ...

| the command ends because | what follows |
|---|---|
| the last step is done | exit code 0 |
| a signal stopped it (time limit near, `scancel --signal=USR1`) | it has saved; the job goes back into the queue |
| something has to be mended by hand | exit code 2 |
| a rank, a launcher or a node was lost, or a rank hung | it is started again in the same job |
| that happened a few times without a newer checkpoint | exit code 1, and the node that began it is named |

Outside of Slurm there is no queue: a run that a signal stopped ends with 75.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from calm_megatron.config.errors import MISTAKE, REQUEUE, UserError, run_command_line
from calm_megatron.launch.story import Outcome, Story, newest_step
from calm_megatron.launch.words import FOLDER, Word, judge

MAX_STARTS = "CALM_MAX_IDLE_STARTS"
"""Variable of the environment: starts in a row without a newer checkpoint, after which it is given up."""
WARNING_SECONDS = "CALM_WARNING_SECONDS"
"""Variable of the environment: how long before the end of the job SIGUSR1 comes."""
_LAST_MOMENT = 60
"""Seconds before the end of the job at which a run that is still saving goes back into the queue as it is."""


class Supervisor:
    """Of one job.

    Args:
        command: what trains, with `run.directory=...` among its words.
        pause: seconds before another start, times the starts in a row that came to nothing.
    """

    def __init__(self, command: Sequence[str], pause: float = 10.0) -> None:
        self.command, self.pause = list(command), pause
        self.run = _run_folder(command)
        self.job = os.environ.get("SLURM_JOB_ID")
        self.nodes = _nodes() if self.job else (os.uname().nodename,)
        self.story = Story(self.run, f"Slurm job {self.job}" if self.job else f"process {os.getpid()}")
        self.max_idle = int(os.environ.get(MAX_STARTS, "3"))
        self._child: subprocess.Popen[bytes] | None = None
        self._ended_by: int | None = None
        self._limit_near = False

    def main(self) -> int:
        """Run to the end; returns the exit code."""
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        while True:
            outcome = self.attempt()
            print(f"{outcome.kind} at step {outcome.step}: {outcome.reason}", file=sys.stderr, flush=True)
            if outcome.kind == "finished":
                return 0
            if outcome.kind == "ended":
                return REQUEUE
            if outcome.kind == "mistake":
                return MISTAKE
            idle = self.story.without_progress()
            if len(idle) >= self.max_idle:
                raise GivenUp(idle, self.run)
            if outcome.kind != "stopped" and not self._limit_near:
                self._wait(self.pause * len(idle))
            if self._ended_by is not None:
                return REQUEUE
            if outcome.kind == "stopped" or self._limit_near:
                return self._back_into_the_queue()

    def _wait(self, seconds: float) -> None:
        """Before the next start, unless a signal says that there is none."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._ended_by is None and not self._limit_near:
            time.sleep(0.1)

    def attempt(self) -> Outcome:
        """Run the command once."""
        attempt = self.story.begin(self.nodes)
        folder = self.run / "attempts" / f"{attempt.number:04d}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        environment = {**os.environ, FOLDER: str(folder.resolve())}
        # In a group of its own, so that a Ctrl-C at the terminal comes from us, once.
        self._child = subprocess.Popen(self.command, env=environment, start_new_session=True)
        code = self._child.wait()
        words = [Word.read(path) for path in sorted(folder.glob("*.json"))]
        outcome = judge(words, self.nodes, code if code >= 0 else 128 - code, newest_step(self.run))
        if self._ended_by is not None and outcome.kind != "finished":
            reason = f"{signal.Signals(self._ended_by).name} ended the job"
            outcome = Outcome("ended", outcome.code, reason, step=outcome.step)
        self.story.end(outcome)
        return outcome

    def _back_into_the_queue(self) -> int:
        """Requeue the job, which ends this process; where that is not possible, whoever started it is told."""
        if self.job is None:
            return REQUEUE
        if subprocess.run(["scontrol", "requeue", self.job], check=False).returncode == 0:
            signal.pause()
        return REQUEUE

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """SIGUSR1 is Slurm's warning of the time limit, the others are the end of the job."""
        if number == signal.SIGUSR1:
            self._limit_near = True
        else:
            self._ended_by = number
        if self.job is None:
            if self._child is not None:
                self._child.send_signal(number)
        elif number == signal.SIGUSR1:
            # Slurm itself sends the others to all processes of the job.
            subprocess.run(["scancel", "--signal=USR1", self.job], check=False)
            if warned := os.environ.get(WARNING_SECONDS):
                signal.signal(signal.SIGALRM, lambda *_: sys.exit(self._back_into_the_queue()))
                signal.alarm(max(1, int(warned) - _LAST_MOMENT))


class GivenUp(UserError):
    """Starts in a row came to nothing."""

    exit_code = 1

    def __init__(self, idle: Sequence[Outcome], run: Path) -> None:
        suspects = Counter(outcome.suspect for outcome in idle if outcome.suspect)
        named = ", ".join(f"{node} ({count} of {len(idle)})" for node, count in suspects.most_common())
        reasons = "; ".join(dict.fromkeys(outcome.reason for outcome in idle))
        super().__init__(
            f"{len(idle)} starts in a row gave no newer checkpoint than step {idle[-1].step}: {reasons}",
            f"{run}{f'; it began on {named}' if named else ''}",
            "see log.jsonl and the job's output; leave a bad node out (sbatch --exclude), then submit again",
        )


def _run_folder(command: Sequence[str]) -> Path:
    given = [word.partition("=")[2] for word in command if word.startswith("run.directory=")]
    if not given:
        raise UserError("the command does not say where the run lives", "supervise", "add run.directory=FOLDER to it")
    return Path(given[-1])


def _nodes() -> tuple[str, ...]:
    """Names of the job's nodes."""
    names = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
    return tuple(subprocess.run(names, check=True, capture_output=True, text=True).stdout.split())


if __name__ == "__main__":
    run_command_line(lambda: Supervisor(sys.argv[1:]).main())
