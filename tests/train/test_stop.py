"""Stopping and failing: a signal, a loss that is no number, and what is left on disk afterwards."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from calm_megatron.telemetry.run_log import read_log
from tests.small_runs import AR, AUTOENCODER, ROOT, settings

RUINOUS = {"optimizer__lr": 1e30, "optimizer__lr_warmup_iters": 0}
Program = Callable[..., subprocess.CompletedProcess[str]]


def config_file(folder: Path, overrides: list[str]) -> Path:
    """The settings as a YAML file, since the programs want at least one."""
    import yaml

    from calm_megatron.config.files import load_run, to_yaml

    path = folder / "run.yaml"
    path.write_text(to_yaml(load_run([], overrides)))
    assert yaml.safe_load(path.read_text())["run"]["directory"]
    return path


def test_a_signal_saves_and_the_next_start_goes_on(tmp_path: Path, small_corpus: Path, program: Program) -> None:
    run = tmp_path / "run"
    overrides = settings(AUTOENCODER, run__directory=run, data__data_path=small_corpus, train__train_iters=100000)
    config = config_file(tmp_path, settings(overrides, optimizer__lr_decay_iters=100000))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, ROOT / "pretrain_ae.py", config], env=environment)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and len(_steps(run)) < 5:
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 75
    finally:
        process.kill()
    stopped = len(_steps(run))
    assert stopped >= 5
    assert (run / "checkpoints" / f"step_{stopped:08d}" / "manifest.json").is_file()
    assert read_log(run / "log.jsonl").events[-1].kind == "stop"

    done = program(ROOT / "pretrain_ae.py", config, f"train.train_iters={stopped + 3}")
    assert done.returncode == 0, done.stderr
    assert len(_steps(run)) == stopped + 3
    assert (run / "evaluation.json").is_file()


def test_losses_that_are_no_numbers_end_the_run_and_nothing_is_saved(
    tmp_path: Path, small_corpus: Path, program: Program
) -> None:
    run = tmp_path / "run"
    overrides = settings(
        AUTOENCODER, run__directory=run, data__data_path=small_corpus, train__max_skipped_steps=3, **RUINOUS
    )
    done = program(ROOT / "pretrain_ae.py", config_file(tmp_path, overrides), ranks=2)
    assert done.returncode != 0
    assert done.stderr.count("error: 3 steps in a row, up to step") == 1, done.stderr
    assert "optimizer.lr" in done.stderr
    assert 'pretrain_ae.py", line' not in done.stderr
    assert not list(run.glob("checkpoints/*"))


def test_so_do_those_of_a_pipeline(tmp_path: Path, small_corpus: Path, program: Program) -> None:
    run = tmp_path / "run"
    overrides = settings(
        AR,
        run__directory=run,
        data__data_path=small_corpus,
        train__max_skipped_steps=3,
        **RUINOUS,
        parallel__pipeline_model_parallel_size=2,
    )
    done = program(ROOT / "pretrain_calm.py", config_file(tmp_path, overrides), ranks=2)
    assert done.returncode != 0
    assert done.stderr.count("error: 3 steps in a row, up to step") == 1, done.stderr
    assert 'pretrain_calm.py", line' not in done.stderr
    assert not list(run.glob("checkpoints/*"))


def _steps(run: Path) -> list[float]:
    log = run / "log.jsonl"
    return read_log(log).series("loss")[1] if log.exists() else []
