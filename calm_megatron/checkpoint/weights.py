"""Weights by name put into a module, if they are its own."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def misfits(module: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, str]:
    """By name, what is wrong with weights that are to be a module's: missing, unexpected, or of another shape."""
    own = dict(module.named_parameters())
    found = {name: f"missing: {name}" for name in own.keys() - weights.keys()}
    found |= {name: f"unexpected: {name}" for name in weights.keys() - own.keys()}
    return found | {
        name: f"{name}: shape {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own.keys() & weights.keys()
        if weights[name].shape != own[name].shape
    }


def put(weights: Mapping[str, Tensor], module: nn.Module) -> None:
    """Copy weights that fit."""
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.copy_(weights[name])
