"""The Triton kernel gives what plain torch gives, by Triton's interpreter, in a process that has chosen it."""

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.small_runs import ROOT


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="Triton is not installed; make test-slow does that")
def test_the_kernel_is_the_score() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.losses.triton_worker"],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    compared = done.stdout.splitlines()
    assert len(compared) == 25, done.stdout
