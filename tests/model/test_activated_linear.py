"""Linear layers behind an activation give what autograd gives, and keep less."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calm_megatron.model.activated_linear import GatedSiluLinear, SiluLinear


def gated(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


CASES = [(SiluLinear, F.silu, 6), (GatedSiluLinear, gated, 12)]


@pytest.mark.parametrize(("kind", "activation", "width"), CASES)
def test_values_and_gradients_are_autograds(
    kind: type[nn.Linear], activation: Callable[[Tensor], Tensor], width: int
) -> None:
    torch.manual_seed(0)
    layer, x, given = kind(6, 4), torch.randn(3, 5, width, requires_grad=True), torch.randn(3, 5, 4)
    leaves = [x, layer.weight, layer.bias]
    ours, expected = layer(x), F.linear(activation(x), layer.weight, layer.bias)
    assert torch.equal(ours, expected)
    found, gradients = (torch.autograd.grad(output, leaves, given) for output in (ours, expected))
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("kind", "activation", "width"), CASES)
def test_of_the_input_nothing_else_is_kept(
    kind: type[nn.Linear], activation: Callable[[Tensor], Tensor], width: int
) -> None:
    kept: list[Tensor] = []
    layer, x = kind(6, 4), torch.randn(3, width, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(x)
    assert [tensor.data_ptr() for tensor in kept] == [x.data_ptr(), layer.weight.data_ptr()]
