"""Initial weights by name: every weight is drawn whole from its own stream, so that no layout changes it."""

import math

import torch
from torch import nn

from calm_megatron.parallel.random_streams import initial_normal


def initialise(module: nn.Module, seed: int, std: float, zero: tuple[str, ...] = ()) -> None:
    """Set all weights as the official code does: matrices N(0, std^2), biases 0, norm weights 1.

    Args:
        module: the whole model, uncut.
        seed: the run's.
        std: standard deviation of the matrices.
        zero: names of parameters that start at 0.
    """
    unknown = set(zero) - {name for name, _ in module.named_parameters()}
    if unknown:
        raise ValueError(f"no such parameters: {sorted(unknown)}")
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name in zero or name.endswith("bias"):
                weight.zero_()
            elif weight.dim() == 1:
                weight.fill_(1.0)
            else:
                weight.copy_(initial_normal(seed, name, weight.shape) * std)


def count_parameters(module: nn.Module) -> int:
    """Number of weights, those that ZeRO-3 has cut included."""
    return sum(math.prod(getattr(weight, "ds_shape", weight.shape)) for weight in module.parameters())
