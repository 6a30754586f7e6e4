"""The terms of the energy score and their gradient in one Triton kernel, for GPUs: no distance is ever in memory.

A program has one patch: its samples stay in registers while the targets' noise goes by in tiles. All distances are
taken of differences, as nothing here is bound by arithmetic, so no digit is lost and no TF32 comes in.

It has run under Triton's interpreter (tests/losses/test_energy_score_triton.py), and not yet on a GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE_NUMBERS = 8192
"""Differences between all samples and a tile of targets, about: 64 registers of a thread in a program of 4 warps."""


def energy_terms(centred_NrZ: Tensor, std_rZ: Tensor, noise_MrZ: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Spread (r,), distance (r,), and the gradient of their score by the samples, (N, r, Z); all fp32.

    Args:
        centred_NrZ: samples less the posterior's mean.
        std_rZ: the posterior's standard deviation.
        noise_MrZ: standard normal noise of the targets; (M, 1, Z) is shared by all patches.
        beta: exponent of the distance.
    """
    N, r, Z = centred_NrZ.shape
    centred_NrZ, std_rZ, noise_MrZ = (
        tensor.float() if tensor.stride(-1) == 1 else tensor.float().contiguous()
        for tensor in (centred_NrZ, std_rZ, noise_MrZ)
    )
    spread_r, distance_r = centred_NrZ.new_empty(2, r)
    gradient_NrZ = torch.empty_like(centred_NrZ, memory_format=torch.contiguous_format)
    samples, latent = triton.next_power_of_2(N), triton.next_power_of_2(Z)
    tile = max(1, min(triton.next_power_of_2(len(noise_MrZ)), _TILE_NUMBERS // (samples * latent)))
    _patch[(r,)](
        centred_NrZ, std_rZ, noise_MrZ, spread_r, distance_r, gradient_NrZ,
        N, len(noise_MrZ), Z, beta,
        centred_NrZ.stride(0), centred_NrZ.stride(1), std_rZ.stride(0),
        noise_MrZ.stride(0), noise_MrZ.stride(1) if noise_MrZ.shape[1] == r else 0,
        gradient_NrZ.stride(0), gradient_NrZ.stride(1),
        SAMPLES=samples, TARGETS=tile, LATENT=latent,
    )  # fmt: skip
    return spread_r, distance_r, gradient_NrZ


@triton.jit
def _power(squared, beta):  # type: ignore[no-untyped-def]
    """D = squared^(beta / 2) and w = beta D / squared; both 0 where the points coincide, as near as fp32 can tell.

    Asked for in this way, a NaN stays one.
    """
    meet = squared < 1.1754943508222875e-38
    safe = tl.where(meet, 1.0, squared)
    distance = tl.where(meet, 0.0, tl.exp2(tl.log2(safe) * (beta / 2)))
    return distance, beta * distance / safe


@triton.jit  # type: ignore[untyped-decorator]
def _patch(  # type: ignore[no-untyped-def]
    centred_ptr, std_ptr, noise_ptr, spread_ptr, distance_ptr, gradient_ptr,
    N, M, Z, beta,
    centred_sample, centred_patch, std_patch, noise_target, noise_patch, gradient_sample, gradient_patch,
    SAMPLES: tl.constexpr, TARGETS: tl.constexpr, LATENT: tl.constexpr,
):  # fmt: skip
    patch = tl.program_id(0).to(tl.int64)
    sample = tl.arange(0, SAMPLES)
    latent = tl.arange(0, LATENT)
    in_latent = latent < Z
    in_samples = sample < N
    own = in_samples[:, None] & in_latent[None, :]
    first = centred_ptr + patch * centred_patch + latent
    centred_NZ = tl.load(first[None, :] + sample[:, None] * centred_sample, mask=own, other=0.0)
    std_Z = tl.load(std_ptr + patch * std_patch + latent, mask=in_latent, other=0.0)

    pull_NZ = tl.zeros((SAMPLES, LATENT), dtype=tl.float32)
    spread_N = tl.zeros((SAMPLES,), dtype=tl.float32)
    for other in range(N):
        other_Z = tl.load(first + other * centred_sample, mask=in_latent, other=0.0)
        difference_NZ = centred_NZ - other_Z[None, :]
        distance_N, weight_N = _power(tl.sum(difference_NZ * difference_NZ, axis=1), beta)
        spread_N += distance_N
        pull_NZ += weight_N[:, None] * difference_NZ

    push_NZ = tl.zeros((SAMPLES, LATENT), dtype=tl.float32)
    distance_sum_N = tl.zeros((SAMPLES,), dtype=tl.float32)
    for begin in range(0, M, TARGETS):
        target = begin + tl.arange(0, TARGETS)
        in_targets = target < M
        noise_mZ = tl.load(
            noise_ptr + patch * noise_patch + target[:, None].to(tl.int64) * noise_target + latent[None, :],
            mask=in_targets[:, None] & in_latent[None, :],
            other=0.0,
        )
        difference_NmZ = centred_NZ[:, None, :] - (noise_mZ * std_Z[None, :])[None, :, :]
        distance_Nm, weight_Nm = _power(tl.sum(difference_NmZ * difference_NmZ, axis=2), beta)
        distance_sum_N += tl.sum(tl.where(in_targets[None, :], distance_Nm, 0.0), axis=1)
        weight_Nm = tl.where(in_targets[None, :], weight_Nm, 0.0)
        push_NZ += tl.sum(weight_Nm[:, :, None] * difference_NmZ, axis=1)

    pairs = N * (N - 1)
    spread = tl.sum(tl.where(in_samples, spread_N, 0.0), axis=0) / pairs
    distance = tl.sum(tl.where(in_samples, distance_sum_N, 0.0), axis=0) / (N * M)
    tl.store(spread_ptr + patch, spread)
    tl.store(distance_ptr + patch, distance)
    # Each pair is in the spread twice, and so is its pull on either of the two.
    gradient_NZ = 2 * pull_NZ / pairs - 2 * push_NZ / (N * M)
    to = gradient_ptr + patch * gradient_patch + sample[:, None] * gradient_sample + latent[None, :]
    tl.store(to, gradient_NZ, mask=own)
