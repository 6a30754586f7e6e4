"""Time of the energy head, forward and backward, against the same head on hidden states repeated for every sample."""

import torch
from torch import Tensor

from benchmarks.harness import Row, compare_times, demand_equal
from calm_megatron.config.schema import CalmConfig, EnergyHeadConfig
from calm_megatron.model.heads.energy import EnergyHead
from calm_megatron.model.initialise import initialise

N, PATCHES, HIDDEN, NOISE_SIZE = 8, 1024, 512, 64
CONFIG = CalmConfig(
    autoencoder="none is needed",
    vocab_size=1024,
    num_layers=1,
    hidden_size=HIDDEN,
    ffn_hidden_size=1376,
    num_attention_heads=4,
    head=EnergyHeadConfig(num_layers=4, num_samples=N, noise_size=NOISE_SIZE),
)


def shared(head: EnergyHead, hidden_RH: Tensor, noise_NRn: Tensor) -> Tensor:
    """Ours: what depends on the hidden state alone is computed once per patch."""
    return head.latents(hidden_RH, noise_NRn)


def repeated(head: EnergyHead, hidden_RH: Tensor, noise_NRn: Tensor) -> Tensor:
    """The official way: each of the N samples is a row of its own, with its own copy of the hidden state."""
    samples_1SZ = head.latents(hidden_RH.repeat(N, 1), noise_NRn.reshape(1, N * PATCHES, -1))
    return samples_1SZ.reshape(N, PATCHES, -1)


def gradient(samples_NRZ: Tensor, hidden_RH: Tensor, head: EnergyHead) -> Tensor:
    """Gradient by the hidden states, those by the weights computed as well."""
    loss = samples_NRZ.square().mean()
    return torch.autograd.grad(loss, [hidden_RH, *head.parameters()])[0]


def run() -> Row:
    """Compare the times of one step."""
    dice = torch.Generator().manual_seed(0)
    head = EnergyHead(CONFIG)
    initialise(head, seed=1, std=0.1)
    hidden_RH = torch.randn(PATCHES, HIDDEN, generator=dice).requires_grad_()
    noise_NRn = torch.rand(N, PATCHES, NOISE_SIZE, generator=dice) - 0.5
    given = (head, hidden_RH, noise_NRn)
    demand_equal("samples", shared(*given), repeated(*given), 1e-5)
    demand_equal("gradient", gradient(shared(*given), hidden_RH, head), gradient(repeated(*given), hidden_RH, head))
    return compare_times(
        lambda: gradient(shared(*given), hidden_RH, head),
        lambda: gradient(repeated(*given), hidden_RH, head),
        rounds=7,
    )
