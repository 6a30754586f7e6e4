"""Golden checkpoints taken in, once for all tests, and a baseline with a tokenizer, given away."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from torch import nn

from calm_megatron.checkpoint.store import CheckpointStore
from calm_megatron.config.files import parse_run
from calm_megatron.model.ar_baseline import ArBaseline
from calm_megatron.parallel.grid import Grid
from calm_megatron.release.exporting import ExportRequest, export_official
from calm_megatron.release.importing import import_official
from tests.release.golden_folders import golden_folder
from tests.small_engine import SmallEngine, save
from tests.small_runs import VOCABULARY

MODEL = {
    "type": "ar", "patch_size": 1, "vocab_size": VOCABULARY, "hidden_size": 32, "ffn_hidden_size": 48, "num_layers": 2,
    "num_attention_heads": 4, "num_query_groups": 2, "rotary_base": 5000.0,
}  # fmt: skip


@pytest.fixture(scope="session")
def imported(golden: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder that a golden checkpoint is taken into."""
    folder = tmp_path_factory.mktemp("imported")

    @cache
    def take(name: str) -> Path:
        import_official(golden_folder(golden, name), folder / name)
        return folder / name

    return take


@pytest.fixture
def copied(golden: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of an official checkpoint, to be damaged."""

    def copy(name: str) -> Path:
        source, target = golden_folder(golden, name), tmp_path / "official" / name
        target.mkdir(parents=True)
        for file in source.iterdir():
            if file.name != "io.safetensors":
                shutil.copyfile(file, target / file.name)
        return target

    return copy


@pytest.fixture(scope="session")
def baseline(small_corpus: Path, grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the baseline with a tokenizer and a score, as training would leave it."""
    folder = tmp_path_factory.mktemp("runs") / "baseline"
    config = parse_run(
        {
            "run": {"directory": str(folder)},
            "model": MODEL,
            "data": {"data_path": str(small_corpus), "seq_length": 64},
            "train": {"train_iters": 7},
        },
        "a test",
    )
    engine = SmallEngine(ArBaseline(config.model))  # type: ignore[arg-type]
    for weight in engine.module.parameters():
        nn.init.normal_(weight, std=0.3)
    save(CheckpointStore(config, grid), engine, 7)
    shutil.copytree(small_corpus.parent / "tokenizer", folder / "tokenizer")
    scores = {"task": "ar", "split": "valid", "step": 7, "brierlm": 1.25, "brierlm_low": 1.0, "brierlm_high": 1.5}
    (folder / "evaluation.json").write_text(json.dumps({**scores, "brier": [0.1] * 4, "confidence": 0.95}))
    return folder


@pytest.fixture(scope="session")
def release(baseline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is given away of it."""
    target = tmp_path_factory.mktemp("release") / "llama"
    done = export_official(baseline, target, ExportRequest(license="apache-2.0"))
    assert done.differences.equal and set(done.differences.largest) == {"hidden states", "logits", "loss"}
    return target
