"""A model that holds no weights: each comes when its module works, and goes after it.

So a model of any size runs in the memory of its largest weight.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

Read = Callable[[str], Tensor]


def streamed(model: nn.Module, read: Read) -> None:
    """Let a model, built on the meta device, fetch its weights when they are used.

    Args:
        model: whose weights are used in the forward pass of the very module that holds them, and nowhere else.
        read: gives a weight by its name in the model.
    """
    for prefix, module in model.named_modules():
        names = {name: f"{prefix}.{name}" if prefix else name for name, _ in module.named_parameters(recurse=False)}
        if names:
            absent = {name: module.get_parameter(name) for name in names}
            module.register_forward_pre_hook(partial(_bring, names, read))
            module.register_forward_hook(partial(_take_away, absent))


def _bring(names: dict[str, str], read: Read, module: nn.Module, inputs: Any) -> None:
    for name, full in names.items():
        setattr(module, name, nn.Parameter(read(full), requires_grad=False))


def _take_away(absent: dict[str, nn.Parameter], module: nn.Module, inputs: Any, output: Any) -> None:
    for name, weight in absent.items():
        setattr(module, name, weight)
