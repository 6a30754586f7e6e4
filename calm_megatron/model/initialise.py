"""Initial weights by name: every weight is drawn whole from its own stream, so that no layout changes it."""

import math

import torch
from torch import Tensor, nn

from calm_megatron.model.sharding import Sharding
from calm_megatron.parallel.random_streams import initial_normal, initial_uniform


def initialise(
    module: nn.Module,
    seed: int,
    std: float,
    zero: tuple[str, ...] = (),
    sharding: Sharding | None = None,
    xavier: tuple[str, ...] = (),
) -> None:
    """Set all weights as the official code does: matrices N(0, std^2), biases 0, norm weights 1.

    Args:
        module: the model, or this tensor rank's part of it.
        seed: the run's.
        std: standard deviation of the matrices.
        zero: names of parameters that start at 0.
        sharding: how the tensor ranks cut the weights; none for a whole model.
        xavier: names of matrices that start uniform within +-sqrt(6 / (inputs + outputs)) (Glorot & Bengio 2010).
    """
    unknown = {*zero, *xavier} - {name for name, _ in module.named_parameters()}
    if unknown:
        raise ValueError(f"no such parameters: {sorted(unknown)}")
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name in zero or name.endswith("bias"):
                weight.zero_()
            elif weight.dim() == 1:
                weight.fill_(1.0)
            else:
                shape = sharding.whole_shape(name, weight.shape) if sharding else weight.shape
                whole = _xavier(seed, name, shape) if name in xavier else initial_normal(seed, name, shape) * std
                weight.copy_(sharding.part(name, whole) if sharding else whole)


def _xavier(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    outputs, inputs = shape
    return (2 * initial_uniform(seed, name, shape) - 1) * math.sqrt(6 / (inputs + outputs))
