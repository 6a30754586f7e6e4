"""What noise shared by 256 patches costs: deviation of a batch's gradient, against noise of its own for each patch.

The gradient is that of the mean loss by a number added to all samples, as a last bias is: there the errors of all
patches add up. Samples and targets have the same law, each patch's mean and deviation its own. The part beside the row
is the deviation that the head's own noise causes, from one drawing of the N samples to the next, with or without it.
"""

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.energy import PATCHES, SHARED, M, N, Z, inputs
from benchmarks.harness import Part, Row, row
from calm_megatron.losses.energy_score import chunk_patches, energy_score_of_blocks
from calm_megatron.model.noise import KeyedNoise
from calm_megatron.parallel.random_streams import RandomStreams

DRAWS, ROUNDS = 16, 3
STREAMS = RandomStreams(1, torch.device("cpu"))


def samples(step: int) -> Tensor:
    """N for each patch, of the posterior's law."""
    _, mean_RZ, log_std_RZ = inputs()
    noise = KeyedNoise(STREAMS, "samples", step, [0], PATCHES)
    return (mean_RZ + noise.normal("head", N, Z) * log_std_RZ.exp()).requires_grad_()


def gradient(samples_NRZ: Tensor, step: int, shared: int) -> Tensor:
    """Gradient (Z,) by what all samples have in common, with the targets' noise of a step."""
    noise = KeyedNoise(STREAMS, "targets", step, [0], PATCHES)
    blocks = noise.normal_blocks("target", M, Z, chunk_patches(N, M, Z), shared)
    score_R = energy_score_of_blocks(samples_NRZ, *inputs()[1:], blocks).score
    (gradient_NRZ,) = torch.autograd.grad(-score_R.mean(), samples_NRZ)
    return gradient_NRZ.sum(dim=(0, 1))


def deviation(gradients: list[Tensor]) -> float:
    """Root of the summed variance."""
    return float(torch.stack(gradients).var(dim=0).sum().sqrt())


def run() -> Row:
    """Draw often."""
    ours, baseline, head = [], [], []
    for number in range(ROUNDS):
        steps = range(number * DRAWS, (number + 1) * DRAWS)
        fixed = samples(number)
        ours.append(deviation([gradient(fixed, step, SHARED) for step in steps]))
        baseline.append(deviation([gradient(fixed, step, 1) for step in steps]))
        head.append(deviation([gradient(samples(step), 0, 1) for step in steps]))
    of_head = sum(head) / ROUNDS
    beside = Part("the head's noise alone, shared and not", of_head, of_head)
    total = Part(
        "both, with sharing and without",
        (of_head**2 + (sum(ours) / ROUNDS) ** 2) ** 0.5,
        (of_head**2 + (sum(baseline) / ROUNDS) ** 2) ** 0.5,
    )
    return replace(row(ours, baseline, "deviation"), parts=(beside, total))
