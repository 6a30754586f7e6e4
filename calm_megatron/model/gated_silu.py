"""silu(gate) * up of both in one tensor, which keeps that tensor for the backward pass and nothing else."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def gated_silu(gate_up: Tensor) -> Tensor:
    """(..., 2 F) to (..., F). Autograd alone would keep silu(gate), too, and join the gradients of both halves."""
    product: Tensor = _GatedSilu.apply(gate_up)  # type: ignore[no-untyped-call]
    return product


class _GatedSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        found = torch.empty_like(gate_up)
        for_gate, for_up = found.chunk(2, dim=-1)
        gate, up = gate_up.chunk(2, dim=-1)
        torch.mul(gradient, up, out=for_gate)
        torch.ops.aten.silu_backward.grad_input(for_gate, gate, grad_input=for_gate)
        torch.ops.aten.silu.out(gate, out=for_up).mul_(gradient)
        return found
