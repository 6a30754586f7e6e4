"""Compares the Triton kernel with plain torch, a line for each case; TRITON_INTERPRET=1 runs it without a GPU."""

import itertools

import torch
from torch import Tensor

from calm_megatron.losses.energy_score import NoiseBlock, energy_score_of_blocks
from calm_megatron.losses.energy_score_triton import energy_terms

SIZES = {"published": (8, 100, 3, 128), "uneven": (6, 21, 5, 7), "least": (2, 1, 2, 1), "many": (16, 33, 2, 200)}


def compare(name: str, samples_NRZ: Tensor, std_RZ: Tensor, noise_MrZ: Tensor, beta: float) -> None:
    """Stop unless both agree: score to 1e-5, gradient to 1e-4."""
    samples_NRZ.requires_grad_()
    patches = samples_NRZ.shape[1]
    block = NoiseBlock(patches, noise_MrZ.clone())  # it is used up
    terms = energy_score_of_blocks(samples_NRZ, torch.zeros_like(std_RZ), std_RZ.log(), [block], beta)
    terms.score.sum().backward()
    assert samples_NRZ.grad is not None
    spread_R, distance_R, gradient_NRZ = energy_terms(samples_NRZ.detach(), std_RZ, noise_MrZ, beta)
    for ours, expected, tolerance in (
        (spread_R, terms.spread, 1e-5), (distance_R, terms.distance, 1e-5), (gradient_NRZ, samples_NRZ.grad, 1e-4)
    ):  # fmt: skip
        torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance * max(1e-6, float(expected.abs().max())))
    print(name, beta)


def main() -> None:
    """All cases."""
    torch.manual_seed(0)
    for (name, (N, M, R, Z)), beta in itertools.product(SIZES.items(), (0.5, 1.0, 1.5)):
        samples_NRZ, std_RZ = torch.randn(N, R, Z), torch.rand(R, Z) + 0.1
        compare(name, samples_NRZ, std_RZ, torch.randn(M, R, Z), beta)
        compare(f"{name}, shared noise", samples_NRZ.detach(), std_RZ, torch.randn(M, 1, Z), beta)
    wrong = torch.randn(4, 3, 5)
    wrong[:, 1], wrong[0, 2, 0] = torch.nan, torch.nan
    spread_R, distance_R, _ = energy_terms(wrong, torch.ones(3, 5), torch.randn(7, 3, 5), 1.0)
    assert (spread_R + distance_R).isnan().tolist() == [False, True, True], "numbers that are none must not be lost"
    compare("coinciding points", torch.zeros(4, 2, 5), torch.ones(2, 5), torch.zeros(3, 2, 5), 1.0)


main()
