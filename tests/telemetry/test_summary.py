"""`summary.json` says what the runs' files say."""

import os
from pathlib import Path

import orjson
import pytest

from calm_megatron.config.errors import UserError
from calm_megatron.telemetry.run_log import read_log
from calm_megatron.telemetry.summary import build_summary, write_summary


def test_the_figures(autoencoder_run: Path, calm_run: Path) -> None:
    summary = build_summary(autoencoder_run, calm_run)
    assert summary["ae_token_accuracy"] == 0.99871
    assert summary["ae_token_accuracy_mean"] == 0.99934
    assert summary["ae_collapsed_dimensions"] == 3
    assert summary["ae_robustness"][0] == {"sigma": 0.1, "token_accuracy": 0.9989}
    assert [summary[name] for name in ("brierlm", "brierlm_low", "brierlm_high")] == [7.21, 6.94, 7.49]
    assert summary["brier"] == [0.2113, 0.0871, 0.0341, 0.0118]
    assert summary["brierlm_untrained"]["brierlm"] == 0.0
    assert summary["brierlm_unigram"]["brierlm_high"] == 1.24
    assert len(summary["samples"]) == 3
    assert summary["sizes"]["autoencoder"]["parameters"] == 3_640_576
    assert summary["sizes"]["calm"] == {
        "vocab_size": 1024,
        "patch_size": 4,
        "latent_size": 64,
        "hidden_size": 192,
        "num_layers": 4,
        "parameters": 5_812_224,
        "steps": 160,
        "train_tokens": 2048 * 160,
    }
    walls = [read_log(run / "log.jsonl").wall_seconds for run in (autoencoder_run, calm_run)]
    assert summary["wall_seconds"] == pytest.approx(sum(walls))


def test_throughput_is_the_median_over_the_steps(autoencoder_run: Path, calm_run: Path) -> None:
    summary = build_summary(autoencoder_run, calm_run)
    for name, run in (("ae_tokens_per_second", autoencoder_run), ("tokens_per_second", calm_run)):
        speeds = sorted(read_log(run / "log.jsonl").series("speed/tokens_per_second")[1])
        below = sum(speed < summary[name] for speed in speeds)
        above = sum(speed > summary[name] for speed in speeds)
        assert below == above > 50


def test_it_is_written_whole(autoencoder_run: Path, calm_run: Path, tmp_path: Path) -> None:
    path, summary = tmp_path / "out" / "summary.json", build_summary(autoencoder_run, calm_run)
    write_summary(path, summary)
    write_summary(path, summary)
    assert orjson.loads(path.read_bytes()) == summary
    assert os.listdir(path.parent) == ["summary.json"]


def test_what_cannot_be_written_leaves_the_old_file(autoencoder_run: Path, calm_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text("old")
    (path.parent / "folder").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write_summary(path.parent / "folder", build_summary(autoencoder_run, calm_run))
    assert path.read_text() == "old"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")], "no temporary file stays behind"


@pytest.mark.parametrize("missing", ["log.jsonl", "evaluation.json"])
def test_a_run_without_result_is_a_users_error(missing: str, autoencoder_run: Path, calm_run: Path) -> None:
    (calm_run / missing).unlink()
    with pytest.raises(UserError, match="the calm run has no") as error:
        build_summary(autoencoder_run, calm_run)
    assert error.value.where == str(calm_run)


def test_baselines_and_samples_may_be_missing(autoencoder_run: Path, calm_run: Path) -> None:
    for name in ("baselines.json", "samples.json"):
        (calm_run / name).unlink()
    summary = build_summary(autoencoder_run, calm_run)
    assert summary["brierlm_untrained"] is None
    assert summary["samples"] == []
