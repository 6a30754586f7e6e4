"""The smallest engine that a checkpoint store can save: a module with moments, all on one rank."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calm_megatron.checkpoint.pieces import KINDS, Piece, Place
from calm_megatron.checkpoint.progress import Progress
from calm_megatron.checkpoint.saved_state import SavedState
from calm_megatron.checkpoint.store import CheckpointStore


class SmallEngine:
    """Weights, moments and a count of updates."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.moments = {
            kind: {name: torch.rand_like(weight) for name, weight in module.named_parameters()} for kind in KINDS[1:]
        }
        self.updates = 3

    def own_pieces(self) -> list[Piece]:
        """Each weight is one run."""
        return [
            Piece(Place(name, 0, 1, tuple(weight.shape), 0, weight.numel()), self._values(name, weight))
            for name, weight in self.module.named_parameters()
        ]

    def scalars(self) -> dict[str, Any]:
        """The rest."""
        return {"updates": self.updates, "skipped": 0, "loss_scaler": {}}

    def restore(self, state: SavedState, scalars: Mapping[str, Any]) -> None:
        """Take over what was saved."""
        for piece in self.own_pieces():
            for kind, value in piece.values.items():
                value.copy_(state.read(kind, piece.place))
        self.updates = scalars["updates"]

    def _values(self, name: str, weight: nn.Parameter) -> dict[str, torch.Tensor]:
        values = {kind: moments[name].view(-1) for kind, moments in self.moments.items()}
        return {"weight": weight.detach().view(-1), **values}


def progress_at(step: int) -> Progress:
    """Of a run with eight sequences of 32 tokens a step."""
    return Progress(step, step * 8, step * 8 * 32, (2.5, 2.25))


def save(store: CheckpointStore, engine: SmallEngine, step: int) -> Path:
    """Save and wait; returns the checkpoint."""
    saved = store.begin(engine, progress_at(step)) or store.finish()
    assert saved is not None
    return saved.path
