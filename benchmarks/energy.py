"""A step of the energy score at the sizes of the published models, ours and by all pairs."""

import functools

import torch
from torch import Tensor

from benchmarks import plain
from benchmarks.harness import demand_equal
from calm_megatron.losses.energy_score import chunk_patches, energy_score_of_blocks
from calm_megatron.model.noise import KeyedNoise
from calm_megatron.parallel.random_streams import RandomStreams

N, M, Z, PATCHES, SHARED = 8, 100, 128, 1024, 256
NOISE = KeyedNoise(RandomStreams(1, torch.device("cpu")), "benchmark", 0, [0], PATCHES)


@functools.cache
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Samples (N, R, Z), mean (R, Z), log standard deviation (R, Z): made in the first call, so they do not count."""
    dice = torch.Generator().manual_seed(0)
    samples_NRZ = torch.randn(N, PATCHES, Z, generator=dice)
    mean_RZ = torch.randn(PATCHES, Z, generator=dice)
    log_std_RZ = torch.randn(PATCHES, Z, generator=dice).mul(0.3).sub(1)
    return samples_NRZ.requires_grad_(), mean_RZ, log_std_RZ


def gradient(score_R: Tensor) -> Tensor:
    """Of the mean loss by the samples."""
    return torch.autograd.grad(-score_R.mean(), inputs()[0])[0]


def our_step(shared: int = 1) -> Tensor:
    """Forward and backward of ours, the noise drawn on the way."""
    blocks = NOISE.normal_blocks("target", M, Z, chunk_patches(N, M, Z), shared)
    return gradient(energy_score_of_blocks(*inputs(), blocks).score)


def all_pairs_step() -> Tensor:
    """Forward and backward of the formula, the noise drawn before."""
    return gradient(plain.energy_score(*inputs(), torch.randn(M, PATCHES, Z)))


def demand_same(shared: int) -> None:
    """Stop unless both compute the same on the first patches, given the same noise."""
    first = 2 * shared if shared > 1 else 64
    samples_NRZ, mean_RZ, log_std_RZ = (tensor.detach()[..., :first, :] for tensor in inputs())
    samples_NRZ.requires_grad_()
    blocks = list(KeyedNoise(NOISE.streams, "check", 0, [0], first).normal_blocks("target", M, Z, first, shared))
    noise_MRZ = torch.cat([noise_MrZ.expand(M, patches, Z) for patches, noise_MrZ in blocks], dim=1)
    ours = energy_score_of_blocks(samples_NRZ, mean_RZ, log_std_RZ, blocks).score
    formula = plain.energy_score(samples_NRZ, mean_RZ, log_std_RZ, noise_MRZ)
    demand_equal("score", ours, formula, 1e-5)
    our_gradient, its_gradient = (torch.autograd.grad(score.mean(), samples_NRZ)[0] for score in (ours, formula))
    demand_equal("gradient", our_gradient, its_gradient)
