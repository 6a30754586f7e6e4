"""The demo from text to report, with the real programs, on a small text and in few steps."""

import json
import pydoc_data.topics
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.small_runs import ROOT

SHORT = {
    "autoencoder": [
        "model.hidden_size=32", "model.ffn_hidden_size=64", "model.latent_size=16", "data.seq_length=64",
        "data.split='80,10,10'", "train.train_iters=30", "optimizer.lr_warmup_iters=5",
        "optimizer.lr_wsd_decay_iters=10",
        "evaluation.eval_interval=10", "evaluation.eval_iters=2",
    ],
    "calm": [
        "model.hidden_size=32", "model.ffn_hidden_size=64", "model.latent_size=16", "model.num_layers=1",
        "model.num_attention_heads=2", "model.head.num_layers=1", "data.seq_length=64", "data.split='80,10,10'",
        "train.train_iters=6", "optimizer.lr_warmup_iters=2", "evaluation.eval_interval=3", "evaluation.eval_iters=2",
    ],
}  # fmt: skip


def test_the_demo_goes_from_text_to_report_and_is_quick_the_second_time(
    tmp_path: Path, program: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    corpus, output = tmp_path / "texts", tmp_path / "demo"
    corpus.mkdir()
    for name, text in sorted(pydoc_data.topics.topics.items())[:40]:
        (corpus / f"{name}.txt").write_text(text)
    overrides = [word for model, values in SHORT.items() for value in values for word in (f"--{model}-set", value)]
    command = [ROOT / "tools" / "demo.py", "--corpus", corpus, "--output", output, "--vocab-size", "320", *overrides]

    first = program(*command, timeout=600)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    summary = json.loads((output / "summary.json").read_text())
    assert 0 < summary["ae_token_accuracy"] <= 1
    assert summary["brierlm"] is not None
    assert summary["brierlm_untrained"]["brierlm"] == 0
    assert summary["brierlm_unigram"]["brier"][0] > 0
    assert summary["tokens_per_second"] > 0
    assert len(summary["samples"]) == 3
    assert all(sample["prompt"] for sample in summary["samples"])
    assert "BrierLM" in (output / "report.html").read_text()

    stamp = (output / "calm" / "log.jsonl").stat().st_mtime
    second = program(*command, timeout=120)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("done before") == 9
    assert (output / "calm" / "log.jsonl").stat().st_mtime == stamp
