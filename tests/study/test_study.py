"""A small study as a user runs it: interrupted, gone on with, read again; its figures against plain arithmetic."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from calm_megatron.plan.layers import layer_costs
from calm_megatron.study.grid import Cell, read_study
from calm_megatron.study.results import Point, correlation, read_language_runs
from calm_megatron.telemetry.run_log import read_log
from tests.small_runs import AR, AUTOENCODER, CALM, ROOT, settings

STEPS = 20


def plain(overrides: list[str]) -> dict[str, object]:
    """Overrides as a study's settings."""
    return {name: yaml.safe_load(value) for name, value in (text.split("=", 1) for text in overrides)}


def study_file(folder: Path, corpus: Path) -> Path:
    """An autoencoder, a CALM on it, and the baseline, validated on the way."""
    common = {
        "data__data_path": corpus, "train__train_iters": STEPS, "optimizer__lr_decay_iters": STEPS,
        "evaluation__eval_interval": 5, "evaluation__eval_iters": 2, "checkpoint__save_interval": 5,
    }  # fmt: skip
    tree = {
        "runs": {
            "ar": {
                "settings": plain(settings(AR, **common, evaluation__rollout_positions=8)),
                "grid": {"run.seed": [2]},
            },
            "calm": {"settings": plain(settings(CALM, **common)), "autoencoder": "autoencoder"},
            "autoencoder": {"settings": plain(settings(AUTOENCODER, **common))},
        }
    }
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def start(*words: str | Path) -> "subprocess.Popen[str]":
    """The tool as its own process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tools" / "study.py"), *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, small_corpus: Path) -> tuple[Path, list[str]]:
    """Folder of the runs, and what the study printed: first stopped in its first run, then to its end."""
    folder = tmp_path_factory.mktemp("study")
    file, output = study_file(folder, small_corpus), folder / "runs"
    printed = []
    for stops in (True, False):
        process = start(file, "--output", output, "--jobs", "2")
        try:
            deadline = time.monotonic() + 250
            while stops and not list(output.glob("*/checkpoints/step_*")) and time.monotonic() < deadline:
                assert process.poll() is None, process.communicate()
                time.sleep(0.05)
            if stops:
                process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=400)
        finally:
            process.kill()
        assert process.returncode == (130 if stops else 0), out + err
        printed.append(out)
    return folder, printed


@pytest.fixture(scope="module")
def cells(study: tuple[Path, list[str]]) -> list[Cell]:
    """The runs."""
    folder, _ = study
    return read_study(folder / "study.yaml", folder / "runs")


def test_an_interrupted_study_goes_on(study: tuple[Path, list[str]], cells: list[Cell]) -> None:
    _, printed = study
    assert "goes on" in printed[1] and "3/3" in printed[1]
    resumed = [
        cell for cell in cells if any(event.kind == "resume" for event in read_log(cell.folder / "log.jsonl").events)
    ]
    assert resumed, "a run that had saved went on from there"
    assert all(len(read_log(cell.folder / "log.jsonl").train) >= STEPS // 5 for cell in cells)


def test_finished_runs_stay(study: tuple[Path, list[str]], cells: list[Cell]) -> None:
    folder, _ = study
    before = [(cell.folder / "log.jsonl").stat().st_mtime_ns for cell in cells]
    table = (folder / "runs" / "table.md").read_bytes()
    process = start(folder / "study.yaml", "--output", folder / "runs")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "3 runs, 3 of them done before" in out
    assert [(cell.folder / "log.jsonl").stat().st_mtime_ns for cell in cells] == before
    assert (folder / "runs" / "table.md").read_bytes() == table


def test_figures_are_those_of_the_runs(study: tuple[Path, list[str]], cells: list[Cell]) -> None:
    runs = read_language_runs(cells)
    assert [run.cell.group for run in runs] == ["ar", "calm"]
    autoencoder = next(cell for cell in cells if cell.group == "autoencoder").config.model
    for run in runs:
        assert [point.tokens for point in run.points] == [step * 8 * 64 for step in (5, 10, 15, 20)]
        assert run.tokens == 20 * 8 * 64
        costs = layer_costs(run.cell.config, None if run.is_baseline else autoencoder)  # type: ignore[arg-type]
        assert run.points[-1].flops == run.flops == STEPS * 8 * sum(cost.step_flops for cost in costs)
    assert len({point.loss for point in runs[0].points}) == 4
    folder, _ = study
    table = (folder / "runs" / "table.md").read_text()
    for run in runs:
        score = json.loads((run.cell.folder / "evaluation.json").read_text())["brierlm"]
        assert f"| {run.cell.name} |" in table and f"| {score:.3f} |" in table
    for name in ("brierlm_flops.svg", "brierlm_cross_entropy.svg"):
        assert (folder / "runs" / name).read_text().count("<use") >= 4


def test_correlation_is_pearsons_over_the_baselines(cells: list[Cell]) -> None:
    of_baseline, of_calm = read_language_runs(cells)
    losses, scores = [4.0, 3.5, 3.25, 3.0], [0.1, 0.9, 1.0, 1.6]
    points = tuple(Point(0, 0.0, loss, score) for loss, score in zip(losses, scores, strict=True))
    halves = [replace(of_baseline, points=points[:2]), replace(of_baseline, points=points[2:])]
    assert correlation([*halves, of_calm]) == pytest.approx(np.corrcoef(losses, scores)[0, 1])
    assert correlation([of_calm]) is None
    known = [replace(of_baseline, points=tuple(replace(each, from_probabilities=each.loss**2) for each in points))]
    expected = np.corrcoef(losses, np.square(losses))[0, 1]
    assert correlation(known, from_probabilities=True) == pytest.approx(expected)


def test_an_evaluation_of_other_sequences_is_no_point(cells: list[Cell]) -> None:
    cell = cells[0]
    other = replace(cell.config, evaluation=replace(cell.config.evaluation, final_eval_iters=3))
    assert [point.tokens for point in read_language_runs([replace(cell, config=other)])[0].points] == [
        step * 8 * 64 for step in (5, 10, 15)
    ]


def test_a_run_that_fails_is_named(study: tuple[Path, list[str]], tmp_path: Path, small_corpus: Path) -> None:
    file = study_file(tmp_path, small_corpus)
    tree = yaml.safe_load(file.read_text())
    del tree["runs"]["ar"], tree["runs"]["calm"]
    tree["runs"]["autoencoder"]["settings"]["data.data_path"] = str(tmp_path / "nothing")
    file.write_text(yaml.safe_dump(tree))
    process = start(file, "--output", tmp_path / "runs")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 2
    assert "the run autoencoder ended with exit code 2" in err and "nothing" in err


def test_other_settings_are_refused(study: tuple[Path, list[str]]) -> None:
    folder, _ = study
    tree = yaml.safe_load((folder / "study.yaml").read_text())
    tree["runs"]["ar"]["settings"]["optimizer.lr"] = 0.5
    other = folder / "other.yaml"
    other.write_text(yaml.safe_dump(tree))
    process = start(other, "--output", folder / "runs")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 2
    assert "made with other settings: optimizer.lr" in err


def test_a_place_that_cannot_be_written_is_refused_before_the_first_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = start(study_file(tmp_path, tmp_path / "corpus"), "--output", tmp_path / "file")
    printed, said = done.communicate(timeout=60)
    assert (done.returncode, printed) == (2, "") and "cannot be written" in said and "Traceback" not in said
