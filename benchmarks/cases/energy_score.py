"""Time of the energy score, forward and backward, against its formula written with all pairs and torch's autograd."""

import torch
from torch import Tensor

from benchmarks.harness import Row, compare_times, demand_equal
from calm_megatron.losses import energy_score as ours

N, M, Z, PATCHES = 8, 100, 128, 256
"""The sizes of the published models; the patches are those of one chunk."""

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def inputs() -> Inputs:
    """Samples (N, R, Z), mean (R, Z), log standard deviation (R, Z), noise (M, R, Z)."""
    dice = torch.Generator().manual_seed(0)
    samples_NRZ = torch.randn(N, PATCHES, Z, generator=dice)
    mean_RZ = torch.randn(PATCHES, Z, generator=dice)
    log_std_RZ = torch.randn(PATCHES, Z, generator=dice).mul(0.3).sub(1)
    noise_MRZ = torch.randn(M, PATCHES, Z, generator=dice)
    return samples_NRZ.requires_grad_(), mean_RZ, log_std_RZ, noise_MRZ


def all_pairs(samples_NRZ: Tensor, mean_RZ: Tensor, log_std_RZ: Tensor, noise_MRZ: Tensor) -> Tensor:
    """Score (R,) for beta = 1, every difference of two vectors held in memory."""
    targets_MRZ = mean_RZ + noise_MRZ * log_std_RZ.exp()
    among_NNR = torch.linalg.vector_norm(samples_NRZ.unsqueeze(1) - samples_NRZ.unsqueeze(0), dim=-1)
    to_targets_NMR = torch.linalg.vector_norm(samples_NRZ.unsqueeze(1) - targets_MRZ.unsqueeze(0), dim=-1)
    spread_R, distance_R = among_NNR.sum(dim=(0, 1)) / (N * (N - 1)), to_targets_NMR.mean(dim=(0, 1))
    score_R: Tensor = spread_R - 2 * distance_R
    return score_R


def step(score_R: Tensor, samples_NRZ: Tensor) -> Tensor:
    """The gradient of the mean loss by the samples."""
    (gradient_NRZ,) = torch.autograd.grad(-score_R.mean(), samples_NRZ)
    return gradient_NRZ


def our_step(given: Inputs) -> Tensor:
    """Forward and backward of ours."""
    return step(ours.energy_score(*given).score, given[0])


def all_pairs_step(given: Inputs) -> Tensor:
    """Forward and backward of the formula."""
    return step(all_pairs(*given), given[0])


def run() -> Row:
    """Compare the times of one step."""
    given = inputs()
    demand_equal("score", ours.energy_score(*given).score, all_pairs(*given))
    demand_equal("gradient", our_step(given), all_pairs_step(given))
    return compare_times(lambda: our_step(given), lambda: all_pairs_step(given))
