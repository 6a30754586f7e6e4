"""The energy score: a strictly proper score of a sampler, from samples alone (CALM, section 4; Székely 2003).

For one patch, with N model samples x_i, M draws y_m from the autoencoder's posterior, and D(a, b) = ||a - b||^beta:

    spread   = sum_{i, j} D(x_i, x_j) / (N (N - 1))      how far the model's samples lie apart
    distance = sum_{i, m} D(x_i, y_m) / (N M)            how far they lie from the targets
    score    = spread - 2 distance                       the higher the better; the loss is its negative

The gradient is formed in the forward pass, in fp32, from weights w = beta D^((beta - 2) / beta): the derivative of
D(a, b) by a is w (a - b), so sums over differences become matrix products and no [N, M, patches, Z] tensor exists.

The patches go by in chunks, and the targets' noise comes chunk by chunk: beyond the gradient itself, the memory in use
depends neither on Z nor on the number of patches. Where several patches share their noise, there is no target at all:
with y = s e, ||a - y||^2 = |a|^2 - 2 (a s) . e + s^2 . e^2, two products of matrices.
"""

import functools
import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

CHUNK_NUMBERS = 1 << 19
"""Numbers in the largest tensor of a chunk, at most (unless one patch has more): 2 MiB, which caches hold."""
GPU_CHUNK_NUMBERS = 1 << 25
"""The same on a GPU, which wants to be full: 128 MiB."""
_CPU = torch.device("cpu")
_NEAR = 1e-2
"""A squared distance below this share of |a|^2 + |b|^2 has lost digits in the expansion, and is taken again."""


@dataclass(frozen=True)
class EnergyTerms:
    """Per-patch terms, each of shape (R,), fp32."""

    score: Tensor
    spread: Tensor
    distance: Tensor


class NoiseBlock(NamedTuple):
    """Standard normal noise of the targets of some patches, one after the other; who takes it may write into it."""

    patches: int
    noise_MrZ: Tensor
    """One for each of the patches; or (M, 1, Z), which all of them share."""


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
    rows = chunk_patches(len(samples_NRZ), len(target_noise_MRZ), samples_NRZ.shape[-1], samples_NRZ.device)
    blocks = (NoiseBlock(noise.shape[1], noise.clone()) for noise in target_noise_MRZ.split(rows, dim=1))
    return energy_score_of_blocks(samples_NRZ, mean_RZ, log_std_RZ, blocks, beta)


def energy_score_of_blocks(
    samples_NRZ: Tensor, mean_RZ: Tensor, log_std_RZ: Tensor, target_noise: Iterable[NoiseBlock], beta: float = 1.0
) -> EnergyTerms:
    """The same with noise that comes in blocks, each drawn when its turn is there; together they have R patches.

    Raises:
        ValueError: they have more or fewer.
    """
    score, spread, distance = _EnergyScore.apply(  # type: ignore[no-untyped-call]
        samples_NRZ, mean_RZ.float(), log_std_RZ.float(), target_noise, beta
    )
    return EnergyTerms(score, spread, distance)


def chunk_patches(samples: int, targets: int, latent_size: int, device: torch.device = _CPU) -> int:
    """Patches of a chunk for N, M and Z, each with noise of its own."""
    return _fitting(max(samples, targets) * max(samples, latent_size), device)


def _fitting(numbers: int, device: torch.device) -> int:
    """Patches that a chunk has room for, if the largest tensor has so many numbers for each."""
    return max(1, (CHUNK_NUMBERS if device.type == "cpu" else GPU_CHUNK_NUMBERS) // numbers)


@functools.cache
def has_kernel(device: torch.device) -> bool:
    """Whether the score is computed by the Triton kernel: on a GPU, if Triton is there, which torch brings along."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


class _EnergyScore(torch.autograd.Function):
    """Score and gradient in one pass over chunks of patches."""

    @staticmethod
    def forward(ctx, samples_NRZ, mean_RZ, log_std_RZ, target_noise, beta):  # type: ignore[no-untyped-def]
        patches = samples_NRZ.shape[1]
        gradient_NRZ = torch.empty_like(samples_NRZ, dtype=torch.float32)
        spread, distance = samples_NRZ.new_empty(2, patches, dtype=torch.float32)
        end = 0
        terms = _fused_terms() if has_kernel(samples_NRZ.device) else _terms
        with _full_fp32(samples_NRZ.device):
            for block in _cut(target_noise, len(samples_NRZ)):
                rows = slice(end, end := end + block.patches)
                if end > patches:
                    break
                # Centred on the posterior mean, squared distances lose no digits to a common offset.
                centred_NrZ = samples_NRZ[:, rows].float() - mean_RZ[rows]
                noise_MrZ = block.noise_MrZ.to(centred_NrZ)
                found = terms(centred_NrZ, log_std_RZ[rows].exp(), noise_MrZ, beta)
                spread[rows], distance[rows], gradient_NRZ[:, rows] = found
        if end != patches:
            raise ValueError(f"the noise does not fit the {patches} patches of the samples")
        ctx.save_for_backward(gradient_NRZ)
        ctx.dtype = samples_NRZ.dtype
        ctx.mark_non_differentiable(spread, distance)
        return spread - 2 * distance, spread, distance

    @staticmethod
    def backward(ctx, score_gradient_R, *_):  # type: ignore[no-untyped-def]
        (gradient_NRZ,) = ctx.saved_tensors
        return (gradient_NRZ * score_gradient_R.unsqueeze(-1)).to(ctx.dtype), None, None, None, None


@contextmanager
def _full_fp32(device: torch.device) -> Iterator[None]:
    """No TF32, whatever the process has set: ten bits are too few for distances. Not yet run on a GPU."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _cut(blocks: Iterable[NoiseBlock], samples: int) -> Iterator[NoiseBlock]:
    """Blocks of at most a chunk; pieces of shared noise keep it whole."""
    for patches, noise_MrZ in blocks:
        targets, own, latent_size = noise_MrZ.shape
        device = noise_MrZ.device
        if own == patches:
            most = chunk_patches(samples, targets, latent_size, device)
        else:
            most = _fitting(samples * max(samples, targets, latent_size), device)
        for first in range(0, patches, most):
            noise = noise_MrZ[:, first : first + most] if own == patches else noise_MrZ
            yield NoiseBlock(min(most, patches - first), noise)


_Terms = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]]


def _fused_terms() -> _Terms:
    # Imported here because Triton belongs to GPU machines.
    from calm_megatron.losses.energy_score_triton import energy_terms

    return energy_terms


def _terms(centred_NrZ: Tensor, std_rZ: Tensor, noise_MrZ: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Spread (r,), distance (r,), and the gradient of their score by the samples, (N, r, Z), of a chunk."""
    spread_r, pull_NrZ = _among_samples(centred_NrZ, beta)
    distance_r, push_NrZ = _to_targets(centred_NrZ, _targets(std_rZ, noise_MrZ), beta)
    return spread_r, distance_r, pull_NrZ.sub_(push_NrZ, alpha=2)


class _Targets(Protocol):
    """The targets of r patches, less the posterior's mean."""

    def products(self, centred_NrZ: Tensor) -> tuple[Tensor, Tensor]:
        """|a|^2 + |y|^2 and a . y, each (N, r, M)."""
        ...

    def weighted(self, weight_NrM: Tensor) -> Tensor:
        """The sum of w y over the targets, (N, r, Z)."""
        ...

    def some(self, patch_Q: Tensor, target_Q: Tensor) -> Tensor:
        """These, (Q, Z)."""
        ...


def _targets(std_rZ: Tensor, noise_MrZ: Tensor) -> _Targets:
    noise_rMZ = noise_MrZ.transpose(0, 1)
    if len(noise_rMZ) == len(std_rZ) > 1:
        return _OwnTargets(noise_rMZ.mul_(std_rZ.unsqueeze(1)))
    # Of a single patch, too: its noise may be that of other patches, in other chunks.
    return _SharedTargets(std_rZ, noise_rMZ.squeeze(0))


@dataclass(frozen=True)
class _OwnTargets:
    """Each patch with noise of its own."""

    targets_rMZ: Tensor

    def products(self, centred_NrZ: Tensor) -> tuple[Tensor, Tensor]:
        lengths_rM = torch.linalg.vector_norm(self.targets_rMZ, dim=-1).square_()
        inner_rNM = torch.bmm(centred_NrZ.transpose(0, 1), self.targets_rMZ.transpose(1, 2))
        return centred_NrZ.square().sum(dim=-1, keepdim=True) + lengths_rM, inner_rNM.transpose(0, 1)

    def weighted(self, weight_NrM: Tensor) -> Tensor:
        return torch.bmm(weight_NrM.transpose(0, 1), self.targets_rMZ).transpose(0, 1)

    def some(self, patch_Q: Tensor, target_Q: Tensor) -> Tensor:
        return self.targets_rMZ[patch_Q, target_Q]


@dataclass(frozen=True)
class _SharedTargets:
    """y = s e, e the same for all patches."""

    std_rZ: Tensor
    noise_MZ: Tensor

    def products(self, centred_NrZ: Tensor) -> tuple[Tensor, Tensor]:
        lengths_rM = self.std_rZ.square() @ self.noise_MZ.square().T
        inner_NrM = (centred_NrZ * self.std_rZ) @ self.noise_MZ.T
        return centred_NrZ.square().sum(dim=-1, keepdim=True) + lengths_rM, inner_NrM

    def weighted(self, weight_NrM: Tensor) -> Tensor:
        return (weight_NrM @ self.noise_MZ).mul_(self.std_rZ)

    def some(self, patch_Q: Tensor, target_Q: Tensor) -> Tensor:
        return self.std_rZ[patch_Q] * self.noise_MZ[target_Q]


def _power(squared: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """D = squared^(beta / 2) and D / squared, which is 0 where the points coincide.

    So do points whose squared distance is below the normal numbers of fp32: there the quotient leaves its range.
    """
    distance = squared.pow(beta / 2)
    return distance, (distance / squared).masked_fill_(squared < torch.finfo(squared.dtype).tiny, 0.0)


def _near(squared: Tensor, lengths: Tensor) -> Tensor:
    """Which squared distances |a - b|^2 have lost digits beside |a|^2 + |b|^2, or are not normal numbers."""
    least = squared.new_tensor(torch.finfo(squared.dtype).tiny)
    return squared <= torch.add(least, lengths, alpha=_NEAR)


def _among_samples(samples_NrZ: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Mean distance among the samples and its gradient, by matrix products unless some lie near to each other."""
    count = len(samples_NrZ)
    samples_rNZ = samples_NrZ.transpose(0, 1)
    inner_rNN = torch.bmm(samples_rNZ, samples_rNZ.transpose(1, 2))
    lengths_rN = inner_rNN.diagonal(dim1=1, dim2=2)
    lengths_rNN = lengths_rN.unsqueeze(1) + lengths_rN.unsqueeze(2)
    squared_rNN = torch.sub(lengths_rNN, inner_rNN, alpha=2)
    squared_rNN.diagonal(dim1=1, dim2=2).fill_(math.inf)
    if bool(_near(squared_rNN, lengths_rNN).any()):
        return _among_near_samples(samples_NrZ, beta)
    distance_rNN = squared_rNN.pow(beta / 2)
    weight_rNN = distance_rNN / squared_rNN
    for each in (distance_rNN, weight_rNN):
        each.diagonal(dim1=1, dim2=2).zero_()
    gradient_rNZ = weight_rNN.sum(dim=2, keepdim=True) * samples_rNZ
    gradient_rNZ.sub_(torch.bmm(weight_rNN, samples_rNZ))
    pairs = count * (count - 1)
    return distance_rNN.sum(dim=(1, 2)) / pairs, gradient_rNZ.mul_(2 * beta / pairs).transpose(0, 1)


def _among_near_samples(samples_NrZ: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The same by differences: the samples coincide at the start of training, where products would be all rounding."""
    count = len(samples_NrZ)
    spread_r = samples_NrZ.new_zeros(samples_NrZ.shape[1])
    gradient_NrZ = torch.zeros_like(samples_NrZ)
    for first in range(count - 1):
        difference_nrZ = samples_NrZ[first + 1 :] - samples_NrZ[first]
        distance_nr, weight_nr = _power(torch.linalg.vector_norm(difference_nrZ, dim=-1).square_(), beta)
        spread_r += distance_nr.sum(dim=0)
        pull_nrZ = difference_nrZ.mul_(weight_nr.unsqueeze(-1))
        gradient_NrZ[first + 1 :] += pull_nrZ
        gradient_NrZ[first] -= pull_nrZ.sum(dim=0)
    pairs = count * (count - 1)
    return spread_r * (2 / pairs), gradient_NrZ.mul_(2 * beta / pairs)


def _to_targets(centred_NrZ: Tensor, targets: _Targets, beta: float) -> tuple[Tensor, Tensor]:
    """Mean distance of samples and targets and its gradient, by matrix products.

    Pairs that lie near to each other are taken by their differences instead, as the products would leave them few
    digits. There are few: in 128 dimensions, none unless a sample has all but met a target.
    """
    lengths_NrM, inner_NrM = targets.products(centred_NrZ)
    squared_NrM = torch.sub(lengths_NrM, inner_NrM, alpha=2)
    near = _near(squared_NrM, lengths_NrM).nonzero(as_tuple=True)
    distance_NrM = squared_NrM.pow(beta / 2)
    weight_NrM = torch.div(distance_NrM, squared_NrM, out=squared_NrM)
    sample_Q, patch_Q, target_Q = near
    difference_QZ = centred_NrZ[sample_Q, patch_Q] - targets.some(patch_Q, target_Q)
    distance_Q, weight_Q = _power(difference_QZ.square().sum(dim=-1), beta)
    distance_NrM[near], weight_NrM[near] = distance_Q, 0.0
    gradient_NrZ = weight_NrM.sum(dim=-1, keepdim=True) * centred_NrZ
    gradient_NrZ.sub_(targets.weighted(weight_NrM))
    gradient_NrZ.index_put_((sample_Q, patch_Q), weight_Q.unsqueeze(-1) * difference_QZ, accumulate=True)
    count = len(centred_NrZ) * distance_NrM.shape[-1]
    return distance_NrM.sum(dim=(0, 2)) / count, gradient_NrZ.mul_(beta / count)
