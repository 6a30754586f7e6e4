"""What happened to a run from start to start, told in its `log.jsonl` between what the starts themselves tell.

A start is an event `attempt`, its end an event `outcome`. A start without an outcome was ended from outside, together
with the job: requeued, preempted, cancelled, or lost with its node.

This module, like all that runs on the host of a Slurm job, needs Python's own library only: the run may live in a
container.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["finished", "stopped", "ended", "mistake", "crashed"]
"""`stopped` by a signal of its own, `ended` together with its job."""
_CHECKPOINT = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True)
class Attempt:
    """A start of the run."""

    number: int
    """From 1, over the life of the run folder."""
    launch: str
    """What was submitted: a Slurm job, requeued or not."""
    step: int
    """Of the newest checkpoint when it began."""
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    kind: Kind
    code: int
    """Exit code of the command."""
    reason: str
    """In words."""
    suspect: str | None = None
    """The node on which it began to go wrong."""
    step: int = 0
    """Of the newest checkpoint when it ended."""


class Story:
    """The attempts of a run, in its log.

    Args:
        run: the run folder.
        launch: what was submitted, as in `Attempt.launch`.
    """

    def __init__(self, run: Path, launch: str) -> None:
        self._run, self._launch = run, launch
        self._log = run / "log.jsonl"

    def begin(self, nodes: tuple[str, ...]) -> Attempt:
        """Note a start."""
        past = self.past()
        if past and past[-1][1] is None:
            self._tell("attempt", f"attempt {past[-1][0].number} was ended from outside, with its job")
        number = 1 + (past[-1][0].number if past else 0)
        attempt = Attempt(number, self._launch, newest_step(self._run), nodes)
        message = f"attempt {number} of {self._launch}, from step {attempt.step}, on {', '.join(nodes)}"
        self._tell("attempt", message, attempt=asdict(attempt))
        return attempt

    def end(self, outcome: Outcome) -> None:
        """Note how it ended."""
        suspect = f"; look at {outcome.suspect}" if outcome.suspect else ""
        self._tell(
            "outcome", f"{outcome.kind} at step {outcome.step}: {outcome.reason}{suspect}", outcome=asdict(outcome)
        )

    def past(self) -> list[tuple[Attempt, Outcome | None]]:
        """All attempts of the run, the oldest first."""
        found: list[tuple[Attempt, Outcome | None]] = []
        for entry in self._entries():
            if "attempt" in entry:
                found.append((Attempt(**{**entry["attempt"], "nodes": tuple(entry["attempt"]["nodes"])}), None))
            elif found:
                found[-1] = (found[-1][0], Outcome(**entry["outcome"]))
        return found

    def without_progress(self) -> list[Outcome]:
        """The last attempts of this launch that failed or were stopped without a newer checkpoint, in a row.

        Those ended from outside say nothing about the run, and are passed over.
        """
        idle: list[Outcome] = []
        for attempt, outcome in reversed(self.past()):
            if attempt.launch != self._launch or (outcome is not None and outcome.step > attempt.step):
                break
            if outcome is not None and outcome.kind != "ended":
                idle.append(outcome)
        return idle[::-1]

    def _entries(self) -> Iterator[dict[str, Any]]:
        """Our own lines of the log."""
        for line in self._log.read_bytes().splitlines() if self._log.exists() else []:
            if b'"event":"attempt","' in line or b'"event":"outcome","' in line:
                with contextlib.suppress(ValueError):  # a killed process left half a line
                    entry = json.loads(line)
                    if entry["event"] in entry:
                        yield entry

    def _tell(self, event: str, message: str, **facts: Any) -> None:
        """Append a line such as telemetry/run_log.py writes and reads."""
        self._run.mkdir(parents=True, exist_ok=True)
        head = {"kind": "event", "step": newest_step(self._run), "time": time.time(), "event": event}
        line = json.dumps({**head, "message": message, **facts}, separators=(",", ":")).encode()
        with self._log.open("ab+") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(0, end - 1))
            log.write((b"" if log.read() in (b"", b"\n") else b"\n") + line + b"\n")


def newest_step(run: Path) -> int:
    """Step of the newest published checkpoint; 0 without one."""
    folder = run / "checkpoints"
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return max((int(match.group(1)) for name in names if (match := _CHECKPOINT.fullmatch(name))), default=0)
