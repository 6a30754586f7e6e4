"""Norms with fp32 statistics, the same on CPU and GPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calm_megatron.model.kernels import apex_rms_norm


class RMSNorm(nn.Module):
    """Root-mean-square norm as in Llama: statistics in fp32, rounded to the input's type, then times the weight.

    Takes megatron-core's arguments (`config`, `hidden_size`, `eps`), so that a layer spec can name it.
    """

    def __init__(self, hidden_size: int, eps: float, config: Any = None) -> None:
        super().__init__()
        self.eps = eps
        self.fused = apex_rms_norm()
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., H) to (..., H), in the input's type."""
        if self.fused is not None and hidden.is_cuda:
            return self.fused(hidden, self.weight, self.weight.shape, self.eps)
        normed = F.rms_norm(hidden.float(), self.weight.shape, None, self.eps).to(hidden.dtype)
        return self.weight * normed


class LayerNorm(nn.LayerNorm):
    """LayerNorm with statistics in fp32 and the output in the input's type."""

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., H) to (..., H), in the input's type."""
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(hidden.float(), self.normalized_shape, weight, bias, self.eps).to(hidden.dtype)
