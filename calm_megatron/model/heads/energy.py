"""The energy head: hidden state and noise to a sample of the next latent vector, in one step (CALM, section 4).

    x = norm(noise_embd(noise))   (N, R, H)      y = norm(hidden_embd(hidden))   (R, H)
    x = x + block(x, y)  for each block          latent = output(x)              (N, R, Z)

What depends on the hidden state alone is computed once per patch, not once per sample: y, and the y half of each
block's first linear. The result is that of the official code, which repeats y N times.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calm_megatron.config.schema import CalmConfig
from calm_megatron.model.norms import LayerNorm

LAYER_NORM_EPSILON = 1e-6

Runner = Callable[..., Tensor]
"""Calls a function with arguments."""


def run_at_once(function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    """The plain call."""
    return function(*arguments)


class HeadInput(nn.Module):
    """Embeds noise and hidden state."""

    def __init__(self, hidden_size: int, noise_size: int) -> None:
        super().__init__()
        self.noise_embd = nn.Linear(noise_size, hidden_size)
        self.hidden_embd = nn.Linear(hidden_size, hidden_size)
        self.norm_noise = LayerNorm(hidden_size, eps=LAYER_NORM_EPSILON)
        self.norm_hidden = LayerNorm(hidden_size, eps=LAYER_NORM_EPSILON)

    def forward(self, hidden_RH: Tensor, noise_NRn: Tensor) -> tuple[Tensor, Tensor]:
        """Returns x (N, R, H) and y (R, H)."""
        return self.norm_noise(self.noise_embd(noise_NRn)), self.norm_hidden(self.hidden_embd(hidden_RH))


class ConditionedLinear(nn.Module):
    """linear([x; y]) with y shared by the N samples: the weight's columns are split, y's half is computed once."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size, 2 * hidden_size))
        self.bias = nn.Parameter(torch.empty(hidden_size))

    def forward(self, x_NRH: Tensor, y_RH: Tensor) -> Tensor:
        """(N, R, H), the sum of both halves."""
        weight_x, weight_y = self.weight.chunk(2, dim=1)
        return F.linear(x_NRH, weight_x) + F.linear(y_RH, weight_y, self.bias)


class HeadBlock(nn.Module):
    """One residual block on x, conditioned on y."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.in_ln = LayerNorm(hidden_size, eps=LAYER_NORM_EPSILON)
        self.linear_in = ConditionedLinear(hidden_size)
        self.linear_mid = nn.Linear(hidden_size, hidden_size)
        self.linear_gate_up = nn.Linear(hidden_size, 2 * hidden_size)
        self.down_proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x_NRH: Tensor, y_RH: Tensor) -> Tensor:
        """Returns the new x (N, R, H)."""
        inner = F.silu(self.linear_mid(F.silu(self.linear_in(self.in_ln(x_NRH), y_RH))))
        gate, up = self.linear_gate_up(inner).chunk(2, dim=-1)
        output: Tensor = x_NRH + self.down_proj(F.silu(gate) * up)
        return output


class HeadOutput(nn.Module):
    """x (N, R, H) to latent samples (N, R, Z)."""

    def __init__(self, hidden_size: int, latent_size: int) -> None:
        super().__init__()
        self.in_ln = LayerNorm(hidden_size, eps=LAYER_NORM_EPSILON)
        self.linear_in = nn.Linear(hidden_size, hidden_size)
        self.linear_out = nn.Linear(hidden_size, latent_size)

    def forward(self, x_NRH: Tensor) -> Tensor:
        """Latents (N, R, Z)."""
        output: Tensor = self.linear_out(F.silu(self.linear_in(self.in_ln(x_NRH))))
        return output


class EnergyHead(nn.Module):
    """Input, blocks and output as one sampler; a pipeline stage may hold some of them only."""

    def __init__(self, config: CalmConfig, holds: Callable[[str], bool] = lambda layer: True) -> None:
        super().__init__()
        H, head = config.hidden_size, config.head
        self.noise_size = head.noise_size
        self.input = HeadInput(H, head.noise_size) if holds("head.input") else None
        self.blocks = nn.ModuleDict(
            {str(number): HeadBlock(H) for number in range(head.num_layers) if holds(f"head.blocks.{number}")}
        )
        self.output = HeadOutput(H, config.latent_size) if holds("head.output") else None

    @property
    def is_here(self) -> bool:
        """Whether this stage holds any part of the head."""
        return self.input is not None or len(self.blocks) > 0 or self.output is not None

    def sample(self, hidden_RH: Tensor, noise_NRn: Tensor | None, run: Runner = run_at_once) -> Tensor:
        """N samples (N, R, Z) of the vector after each of R hidden states.

        Args:
            hidden_RH: hidden states; x and y (N + 1, R, H) from the stage before, where that holds the head's input.
            noise_NRn: U[-0.5, 0.5); used by the head's input alone.
            run: calls the blocks, and may recompute them in the backward pass.

        Returns:
            The samples; x and y for the next stage, where that holds the head's output.
        """
        if self.input is None:
            x_NRH, y_RH = hidden_RH[:-1], hidden_RH[-1]
        else:
            assert noise_NRn is not None
            x_NRH, y_RH = self.input(hidden_RH, noise_NRn.to(hidden_RH.dtype))
        for block in self.blocks.values():
            x_NRH = run(block, x_NRH, y_RH)
        if self.output is None:
            return torch.cat([x_NRH, y_RH.unsqueeze(0)])
        samples_NRZ: Tensor = self.output(x_NRH)
        return samples_NRZ
