"""A small engine with real files, and runs to save."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calm_megatron.checkpoint.store import CheckpointStore
from calm_megatron.config.files import parse_run
from calm_megatron.config.schema import RunConfig
from calm_megatron.parallel.grid import Grid


class SmallEngine:
    """Weights and their momentum, saved with torch: all that the store asks of an engine."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.momentum = {name: torch.zeros_like(weight) for name, weight in module.named_parameters()}

    def save(self, directory: Path) -> None:
        """Write weights and momentum."""
        (directory / "engine").mkdir()
        torch.save((self.module.state_dict(), self.momentum), directory / "engine" / "state.pt")

    def load(self, directory: Path) -> None:
        """Read what `save` wrote."""
        weights, self.momentum = torch.load(directory / "engine" / "state.pt")
        self.module.load_state_dict(weights)

    def whole_weights(self) -> dict[str, Tensor]:
        """All weights."""
        return {name: weight.detach().clone() for name, weight in self.module.named_parameters()}


@pytest.fixture
def engine() -> SmallEngine:
    """An engine with one linear layer."""
    return SmallEngine(nn.Linear(3, 2))


@pytest.fixture
def config_of(tmp_path: Path) -> Callable[..., RunConfig]:
    """An autoencoder run in `tmp_path / "run"`; settings are changed as `section__key=value`."""

    def build(model: dict[str, Any] | None = None, **changes: object) -> RunConfig:
        sizes = {"vocab_size": 20, "latent_size": 4, "hidden_size": 8, "ffn_hidden_size": 12}
        tree: dict[str, Any] = {
            "run": {"directory": str(tmp_path / "run")},
            "model": {"type": "autoencoder", **sizes, **(model or {})},
            "data": {"data_path": "corpus", "seq_length": 32},
            "train": {"train_iters": 10},
        }
        for name, value in changes.items():
            section, key = name.split("__")
            tree.setdefault(section, {})[key] = value
        return parse_run(tree, "a test")

    return build


@pytest.fixture
def store(grid: Grid, config_of: Callable[..., RunConfig]) -> CheckpointStore:
    """The store of that run."""
    return CheckpointStore(config_of(), grid)
