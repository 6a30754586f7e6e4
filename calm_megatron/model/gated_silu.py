"""silu(gate) * up, which keeps its two inputs for the backward pass and nothing else."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def gated_silu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, all of one shape; autograd alone would keep silu(gate), too, which is soon formed again."""
    product: Tensor = _GatedSilu.apply(gate, up)  # type: ignore[no-untyped-call]
    return product


class _GatedSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient * up, gate), gradient * F.silu(gate)
