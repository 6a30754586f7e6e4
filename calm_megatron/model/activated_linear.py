"""Linear layers behind an activation, which keep what goes into the activation for the backward pass and nothing else.

Autograd alone would keep what comes out, too, and of a gate the activated half: a third of what a head's block keeps.
Both are formed again in the backward pass, which costs little beside the products of matrices.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SiluLinear(nn.Linear):
    """linear(silu(x))."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        output: Tensor = _SiluLinear.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return output


class GatedSiluLinear(nn.Linear):
    """linear(silu(gate) * up), with both halves in one tensor."""

    def forward(self, gate_up: Tensor) -> Tensor:
        """(..., 2 inputs) to (..., outputs)."""
        output: Tensor = _GatedSiluLinear.apply(gate_up, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return output


class _SiluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(F.silu(x), weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        for_weight, for_bias = _of_parameters(gradient, F.silu(x))
        for_x = gradient @ weight
        return torch.ops.aten.silu_backward.grad_input(for_x, x, grad_input=for_x), for_weight, for_bias


class _GatedSiluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up, weight)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.linear(F.silu(gate).mul_(up), weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gate_up, weight = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        found = torch.empty_like(gate_up)
        for_gate, for_up = found.chunk(2, dim=-1)
        activated = torch.ops.aten.silu.out(gate, out=for_up)
        for_weight, for_bias = _of_parameters(gradient, activated * up)
        for_product = gradient @ weight
        for_up.mul_(for_product)
        torch.ops.aten.silu_backward.grad_input(for_product.mul_(up), gate, grad_input=for_gate)
        return found, for_weight, for_bias


def _of_parameters(gradient: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of a linear layer's weight and bias."""
    gradient_RO = gradient.flatten(0, -2)
    return gradient_RO.T @ inputs.flatten(0, -2), gradient_RO.sum(dim=0)
