"""The gate gives what autograd gives, to the last bit, and keeps less."""

import torch
import torch.nn.functional as F
from torch import Tensor

from calm_megatron.model.gated_silu import gated_silu


def test_value_and_gradients_are_autograds() -> None:
    both = torch.randn(5, 14, requires_grad=True)
    given = torch.randn(5, 7)
    found = []
    for function in (gated_silu, lambda gate, up: F.silu(gate) * up):
        output = function(*both.chunk(2, dim=-1))
        (gradient,) = torch.autograd.grad(output, both, given)
        found.append((output, gradient))
    for ours, expected in zip(*found, strict=True):
        assert torch.equal(ours, expected)


def test_its_inputs_are_all_that_is_kept() -> None:
    kept: list[Tensor] = []
    gate, up = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        gated_silu(gate, up)
    assert [tensor.data_ptr() for tensor in kept] == [gate.data_ptr(), up.data_ptr()]
