"""Many jobs in one launch of ranks, since starting them costs most of the time."""

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.small_runs import ROOT

LAYOUTS_WORKER = ROOT / "tests" / "train" / "layouts_worker.py"
Program = Callable[..., subprocess.CompletedProcess[str]]


def launch(
    program: Program,
    worker: Path,
    file: Path,
    jobs: Sequence[object],
    ranks: int,
    *,
    words: Sequence[str | Path] = (),
    timeout: float,
) -> None:
    """Run a worker on all jobs, one after the other, and demand that it succeeds.

    Args:
        program: the fixture of that name.
        worker: script that takes the file of the jobs as its last argument.
        file: where the jobs are written.
        jobs: what JSON can hold.
        ranks: how many.
        words: arguments before the file.
        timeout: seconds.
    """
    file.write_text(json.dumps(jobs))
    done = program(worker, *words, file, ranks=ranks, timeout=timeout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-8000:]
