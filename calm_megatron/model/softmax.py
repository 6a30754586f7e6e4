"""Tokens from logits, by numbers that are given."""

import torch
from torch import Tensor


def tokens_of(logits_RV: Tensor, uniform_RN: Tensor) -> Tensor:
    """Tokens (R, N) that numbers in [0, 1) make of logits: each inverts the cumulative sum of the softmax.

    Args:
        logits_RV: of any type; the sum is taken in float64.
        uniform_RN: numbers in [0, 1).
    """
    cumulative_RV = logits_RV.double().softmax(dim=-1).cumsum(dim=-1)
    # Scaled by the total, which is 1 up to rounding, no number lies behind it; below it, none lands on a token that
    # cannot occur.
    aim_RN = uniform_RN.double() * cumulative_RV[:, -1:]
    last_R1 = (cumulative_RV < cumulative_RV[:, -1:]).sum(dim=-1, keepdim=True)
    return torch.minimum(torch.searchsorted(cumulative_RV, aim_RN, right=True), last_R1)
