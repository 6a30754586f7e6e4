"""What the launcher of each node leaves behind, and what it says together of how an attempt ended.

torchrun ends with 1 whatever its ranks ended with, and srun with the largest of its nodes' codes. So each node writes
down what became of its ranks, where the job's supervisor reads it.
"""

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from calm_megatron.config.atomic import write_atomically
from calm_megatron.config.errors import MISTAKE, RANK_LOST, REQUEUE
from calm_megatron.launch.story import Outcome

FOLDER = "CALM_ATTEMPT_FOLDER"
"""Variable of the environment: where the words go."""
_ENDED_BY_ANOTHER = (RANK_LOST, -signal.SIGTERM)
"""How ranks end when another one went first: they lost it, or their launcher ended them."""


@dataclass(frozen=True)
class Failure:
    """A rank that did not end well."""

    rank: int
    code: int
    """As Python has it: of a process that a signal ended, minus its number."""
    time: float


@dataclass(frozen=True)
class Word:
    """How it went on one node."""

    node: str
    code: int
    """0 when all ranks ended well, else that of the one that failed first."""
    failures: tuple[Failure, ...] = ()
    error: str = ""
    """What ended the launcher itself, if it was not its ranks."""

    def leave(self) -> None:
        """Write it where the supervisor looks; without one, nowhere."""
        if folder := os.environ.get(FOLDER):
            write_atomically(Path(folder) / f"{self.node}.json", json.dumps(asdict(self)).encode())

    @staticmethod
    def read(path: Path) -> "Word":
        """One that was left."""
        entry = json.loads(path.read_bytes())
        return Word(**{**entry, "failures": tuple(Failure(**failure) for failure in entry["failures"])})


def judge(words: Sequence[Word], nodes: Sequence[str], code: int, step: int) -> Outcome:
    """How an attempt ended.

    Args:
        words: that were left.
        nodes: that should have left one.
        code: exit code of the command that ran on all of them.
        step: of the newest checkpoint.
    """
    failures = [(failure, word.node) for word in words for failure in word.failures]
    codes = {failure.code for failure, _ in failures}
    if code == 0 and not failures:
        return Outcome("finished", 0, "the last step is done", step=step)
    if not words and code in (MISTAKE, REQUEUE):  # a command without our launcher
        failures = [(Failure(0, code, 0.0), nodes[0])]
        codes = {code}
    first, suspect = min(
        (pair for pair in failures if pair[0].code not in (*_ENDED_BY_ANOTHER, REQUEUE)),
        key=lambda pair: pair[0].time,
        default=(None, None),
    )
    if first is not None and first.code == MISTAKE:
        return Outcome("mistake", MISTAKE, "something has to be mended by hand, see the job's output", suspect, step)
    if first is not None:
        return Outcome("crashed", code, f"rank {first.rank} {_ended(first.code)} first", suspect, step)
    if REQUEUE in codes:
        return Outcome("stopped", code, "a signal stopped it", step=step)
    if silent := [node for node in nodes if node not in {word.node for word in words}]:
        what = f"no word from {', '.join(silent)}: its launcher was killed, or the node is gone"
        return Outcome("crashed", code, what, silent[0], step)
    if any(word.code == 128 + signal.SIGTERM for word in words):
        return Outcome("stopped", code, "SIGTERM stopped it", step=step)
    broken = next((word for word in words if word.error), None)
    if broken is not None:
        return Outcome("crashed", code, broken.error, broken.node, step)
    return Outcome("crashed", code, "ranks lost each other", step=step)


def _ended(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
