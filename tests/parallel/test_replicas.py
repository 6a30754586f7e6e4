"""Copies of weights that differ are found and named, on every rank."""

import subprocess
from collections.abc import Callable

from tests.small_runs import ROOT


def test_a_copy_that_differs_is_named_on_every_rank(program: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = program(ROOT / "tests" / "parallel" / "replicas_worker.py", ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        for name in ("first", "second"):
            assert f"rank {rank}: copies of these weights differ among the data ranks: {name}" in done.stdout
