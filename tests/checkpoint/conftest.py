"""A small engine with real files, and runs to save."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from calm_megatron.checkpoint.store import CheckpointStore
from calm_megatron.config.files import parse_run
from calm_megatron.config.schema import ArConfig, RunConfig
from calm_megatron.model.ar_baseline import ArBaseline
from calm_megatron.parallel.grid import Grid
from tests.small_engine import SmallEngine, save


@pytest.fixture
def engine() -> SmallEngine:
    """An engine with one linear layer."""
    return SmallEngine(nn.Linear(3, 2))


@pytest.fixture
def config_of(tmp_path: Path) -> Callable[..., RunConfig]:
    """An autoencoder run in `tmp_path / "run"`; settings are changed as `section__key=value`."""

    def build(model: dict[str, Any] | None = None, **changes: object) -> RunConfig:
        sizes = {"vocab_size": 20, "hidden_size": 8, "ffn_hidden_size": 12}
        tree: dict[str, Any] = {
            "run": {"directory": str(tmp_path / "run")},
            "model": {"type": "autoencoder", **sizes, **(model or {})},
            "data": {"data_path": "corpus", "seq_length": 32},
            "train": {"train_iters": 10},
        }
        if tree["model"]["type"] != "ar":
            tree["model"].setdefault("latent_size", 4)
        for name, value in changes.items():
            section, key = name.split("__")
            tree.setdefault(section, {})[key] = value
        return parse_run(tree, "a test")

    return build


@pytest.fixture
def store(grid: Grid, config_of: Callable[..., RunConfig]) -> CheckpointStore:
    """The store of that run."""
    return CheckpointStore(config_of(), grid)


@pytest.fixture
def baseline_run(grid: Grid, config_of: Callable[..., RunConfig]) -> Path:
    """The folder of a run with a baseline of an odd vocabulary at steps 3 and 5, with moments."""
    sizes = {"vocab_size": 77, "hidden_size": 16, "ffn_hidden_size": 24, "num_layers": 2, "num_attention_heads": 8}
    config = config_of({"type": "ar", "patch_size": 1, **sizes, "num_query_groups": 4}, parallel__zero_stage=1)
    assert isinstance(config.model, ArConfig)
    engine = SmallEngine(ArBaseline(config.model))
    store = CheckpointStore(config, grid, {"tokenizer": "12ab"})
    for step in (3, 5):
        for weight in engine.module.parameters():
            nn.init.normal_(weight)
        save(store, engine, step)
    return Path(config.run.directory)
