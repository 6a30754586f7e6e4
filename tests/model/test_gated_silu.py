"""The gate gives what autograd gives, to the last bit, and keeps less."""

import torch
import torch.nn.functional as F
from torch import Tensor

from calm_megatron.model.gated_silu import gated_silu


def by_autograd(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def test_value_and_gradients_are_autograds() -> None:
    both, given = torch.randn(5, 14, requires_grad=True), torch.randn(5, 7)
    ours, expected = gated_silu(both), by_autograd(both)
    assert torch.equal(ours, expected)
    assert torch.equal(torch.autograd.grad(ours, both, given)[0], torch.autograd.grad(expected, both, given)[0])


def test_its_input_is_all_that_is_kept() -> None:
    kept: list[Tensor] = []
    both = torch.randn(6, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        gated_silu(both)
    assert [tensor.data_ptr() for tensor in kept] == [both.data_ptr()]
