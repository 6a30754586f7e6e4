"""The head computes what the official formulation does, which repeats the hidden state for every sample."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from calm_megatron.model.calm import Calm


def official_sample(weights: dict[str, Tensor], blocks: int, hidden_RH: Tensor, noise_NRn: Tensor) -> Tensor:
    """Section 4 of the paper as the official code lays it out: concatenation of x and the repeated y in each block."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)

    repeated_NRH = hidden_RH.unsqueeze(0).repeat(len(noise_NRn), 1, 1)
    x = norm("input.norm_noise", linear("input.noise_embd", noise_NRn))
    y = norm("input.norm_hidden", linear("input.hidden_embd", repeated_NRH))
    for number in range(blocks):
        block = f"blocks.{number}"
        inner = torch.cat([norm(f"{block}.in_ln", x), y], dim=-1)
        inner = F.silu(linear(f"{block}.linear_in", inner))
        inner = F.silu(linear(f"{block}.linear_mid", inner))
        gate, up = linear(f"{block}.linear_gate_up", inner).chunk(2, dim=-1)
        x = x + linear(f"{block}.down_proj", F.silu(gate) * up)
    return linear("output.linear_out", F.silu(linear("output.linear_in", norm("output.in_ln", x))))


def test_samples_are_those_of_the_official_formulation(build: Callable[..., Calm]) -> None:
    head = build().head
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in head.parameters():
            weight.add_(0.1 * torch.randn_like(weight))  # biases and norm weights matter too
    hidden_RH, noise_NRn = torch.randn(5, 32), torch.rand(4, 5, 8) - 0.5
    expected = official_sample(dict(head.named_parameters()), 2, hidden_RH, noise_NRn)
    torch.testing.assert_close(head.latents(hidden_RH, noise_NRn), expected, rtol=1e-5, atol=1e-5)


def test_samples_differ_and_depend_on_both(build: Callable[..., Calm]) -> None:
    head = build().head
    torch.manual_seed(0)
    hidden_RH, noise_NRn = torch.randn(3, 32), torch.rand(2, 3, 8) - 0.5
    samples_NRZ = head.latents(hidden_RH, noise_NRn)
    assert float((samples_NRZ[0] - samples_NRZ[1]).abs().max()) > 1e-3
    other = head.latents(hidden_RH.flip(0), noise_NRn)
    assert float((other - samples_NRZ)[:, 0].abs().max()) > 1e-3
    torch.testing.assert_close(other[:, 1], samples_NRZ[:, 1])
