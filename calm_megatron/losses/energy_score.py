"""The energy score: a strictly proper score of a sampler, from samples alone (CALM, section 4; Székely 2003).

For one patch, with N model samples x_i, M draws y_m from the autoencoder's posterior, and D(a, b) = ||a - b||^beta:

    spread   = sum_{i, j} D(x_i, x_j) / (N (N - 1))      how far the model's samples lie apart
    distance = sum_{i, m} D(x_i, y_m) / (N M)            how far they lie from the targets
    score    = spread - 2 distance                       the higher the better; the loss is its negative

The gradient is formed in the forward pass, in fp32, from weights w = beta D^(beta - 2): the derivative of D(a, b) by
a is w (a - b), so sums over differences become matrix products and no [N, M, patches, Z] tensor ever exists.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_PATCHES = 256


@dataclass(frozen=True)
class EnergyTerms:
    """Per-patch terms, each of shape (R,), fp32."""

    score: Tensor
    spread: Tensor
    distance: Tensor


def energy_score(
    samples_NRZ: Tensor, mean_RZ: Tensor, log_std_RZ: Tensor, target_noise_MRZ: Tensor, beta: float = 1.0
) -> EnergyTerms:
    """Energy score of N samples against the posterior N(mean, exp(log_std)^2) for each of R patches.

    Args:
        samples_NRZ: the model's samples; the only argument that gets a gradient.
        mean_RZ, log_std_RZ: the frozen encoder's posterior.
        target_noise_MRZ: standard normal noise of the target samples.
        beta: exponent of the distance, in (0, 2). Gradients are finite for all: coinciding points weigh nothing.

    Returns:
        The terms; `score` carries the gradient, the other two are detached.
    """
    score, spread, distance = _EnergyScore.apply(  # type: ignore[no-untyped-call]
        samples_NRZ, mean_RZ.float(), log_std_RZ.float(), target_noise_MRZ.float(), beta
    )
    return EnergyTerms(score, spread, distance)


class _EnergyScore(torch.autograd.Function):
    """Score and gradient in one pass over chunks of patches."""

    @staticmethod
    def forward(ctx, samples_NRZ, mean_RZ, log_std_RZ, noise_MRZ, beta):  # type: ignore[no-untyped-def]
        patches = samples_NRZ.shape[1]
        gradient_NRZ = torch.empty_like(samples_NRZ, dtype=torch.float32)
        spread, distance = samples_NRZ.new_empty(2, patches, dtype=torch.float32)
        for start in range(0, patches, CHUNK_PATCHES):
            rows = slice(start, start + CHUNK_PATCHES)
            # Centred on the posterior mean, squared distances lose no digits to a common offset.
            samples_RNZ = (samples_NRZ[:, rows].float() - mean_RZ[rows]).transpose(0, 1)
            targets_RMZ = (noise_MRZ[:, rows] * log_std_RZ[rows].exp()).transpose(0, 1)
            spread[rows], pull_RNZ = _among_samples(samples_RNZ, beta)
            distance[rows], push_RNZ = _to_targets(samples_RNZ, targets_RMZ, beta)
            gradient_NRZ[:, rows] = (pull_RNZ - 2 * push_RNZ).transpose(0, 1)
        ctx.save_for_backward(gradient_NRZ)
        ctx.dtype = samples_NRZ.dtype
        ctx.mark_non_differentiable(spread, distance)
        return spread - 2 * distance, spread, distance

    @staticmethod
    def backward(ctx, score_gradient_R, *_):  # type: ignore[no-untyped-def]
        (gradient_NRZ,) = ctx.saved_tensors
        return (gradient_NRZ * score_gradient_R.unsqueeze(-1)).to(ctx.dtype), None, None, None, None


def _power(squared: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """D = squared^(beta / 2) and w = beta D^((beta - 2) / beta), with w = 0 where the points coincide.

    So do points whose squared distance is below the normal numbers of fp32: there w leaves its range.
    """
    distance = squared.pow(beta / 2)
    apart = squared >= torch.finfo(squared.dtype).tiny
    weight = torch.where(apart, beta * squared.pow(beta / 2 - 1), 0.0)
    return distance, weight


def _among_samples(samples_RNZ: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Mean distance among the samples and its gradient.

    Squares are taken of differences: the samples coincide at the start of training, where the expansion
    |a|^2 + |b|^2 - 2ab would be all rounding. With N = 8 that costs little.
    """
    count = samples_RNZ.shape[1]
    spread = samples_RNZ.new_zeros(samples_RNZ.shape[0])
    gradient_RNZ = torch.zeros_like(samples_RNZ)
    for shift in range(1, count):
        difference_RNZ = samples_RNZ - samples_RNZ.roll(shift, dims=1)
        distance_RN, weight_RN = _power(difference_RNZ.square().sum(dim=-1), beta)
        spread += distance_RN.sum(dim=1)
        gradient_RNZ += weight_RN.unsqueeze(-1) * difference_RNZ
    pairs = count * (count - 1)
    return spread / pairs, gradient_RNZ * (2 / pairs)


def _to_targets(samples_RNZ: Tensor, targets_RMZ: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Mean distance of samples and targets and its gradient, by batched matrix products."""
    count = samples_RNZ.shape[1] * targets_RMZ.shape[1]
    squared_RNM = torch.baddbmm(
        samples_RNZ.square().sum(dim=-1, keepdim=True) + targets_RMZ.square().sum(dim=-1).unsqueeze(1),
        samples_RNZ,
        targets_RMZ.transpose(1, 2),
        alpha=-2,
    ).clamp_(min=0)
    distance_RNM, weight_RNM = _power(squared_RNM, beta)
    gradient_RNZ = torch.baddbmm(weight_RNM.sum(dim=-1, keepdim=True) * samples_RNZ, weight_RNM, targets_RMZ, alpha=-1)
    return distance_RNM.sum(dim=(1, 2)) / count, gradient_RNZ / count
