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

from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import CalmConfig, EnergyHeadConfig
from calm_megatron.losses.energy_score import chunk_patches, energy_score_of_blocks
from calm_megatron.model.activated_linear import GatedSiluLinear, SiluLinear
from calm_megatron.model.heads.head import (
    LAYER_NORM_EPSILON,
    Head,
    HeadTerms,
    Posterior,
    Runner,
    holds_all,
    run_at_once,
)
from calm_megatron.model.noise import LossNoise, Noise
from calm_megatron.model.norms import LayerNorm
from calm_megatron.parallel.tensor_ranks import TensorRanks


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
        # In place, as the sum needs no tensor of its own.
        return F.linear(x_NRH, weight_x).add_(F.linear(y_RH, weight_y, self.bias))


class HeadBlock(nn.Module):
    """One residual block on x, conditioned on y."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.in_ln = LayerNorm(hidden_size, eps=LAYER_NORM_EPSILON)
        self.linear_in = ConditionedLinear(hidden_size)
        self.linear_mid = SiluLinear(hidden_size, hidden_size)
        self.linear_gate_up = SiluLinear(hidden_size, 2 * hidden_size)
        self.down_proj = GatedSiluLinear(hidden_size, hidden_size)

    def forward(self, x_NRH: Tensor, y_RH: Tensor) -> Tensor:
        """Returns the new x (N, R, H)."""
        inner = self.linear_mid(self.linear_in(self.in_ln(x_NRH), y_RH))
        output: Tensor = x_NRH + self.down_proj(self.linear_gate_up(inner))
        return output


class HeadOutput(nn.Module):
    """x (N, R, H) to latent samples (N, R, Z)."""

    def __init__(self, hidden_size: int, latent_size: int) -> None:
        super().__init__()
        self.in_ln = LayerNorm(hidden_size, eps=LAYER_NORM_EPSILON)
        self.linear_in = nn.Linear(hidden_size, hidden_size)
        self.linear_out = SiluLinear(hidden_size, latent_size)

    def forward(self, x_NRH: Tensor) -> Tensor:
        """Latents (N, R, Z)."""
        output: Tensor = self.linear_out(self.linear_in(self.in_ln(x_NRH)))
        return output


class EnergyHead(Head):
    """Trained by the energy score of its samples, drawn in one step."""

    part_names = ("energy/distance_samples", "energy/distance_targets")
    loss_has_samples = True

    def __init__(
        self, config: CalmConfig, ranks: TensorRanks | None = None, holds: Callable[[str], bool] = holds_all
    ) -> None:
        head, H = config.head, config.hidden_size
        assert isinstance(head, EnergyHeadConfig)
        super().__init__(
            config,
            ranks or TensorRanks(),
            HeadInput(H, head.noise_size) if holds("head.input") else None,
            {str(number): HeadBlock(H) for number in range(head.num_layers) if holds(f"head.blocks.{number}")},
            HeadOutput(H, config.latent_size) if holds("head.output") else None,
        )
        self.settings = head

    def loss(
        self, state: Tensor, posterior: Posterior, noise: LossNoise, run: Runner = run_at_once
    ) -> HeadTerms | Tensor:
        """The negative energy score of N samples against M of the posterior; between stages x and y go on."""
        own_noise_NRn = None
        if self.input is not None:
            # Each tensor rank draws its share of the samples with its copy of the head: samples travel, no activations.
            own_noise_NRn = self.ranks.own_rows(self.noise(noise, self.settings.num_samples))
        latents = self.latents(state, own_noise_NRn, run)
        if self.output is None:
            return latents
        samples_NRZ = self.ranks.gather_samples(latents)
        mean_RZ, log_std_RZ = posterior()
        N, M, Z = len(samples_NRZ), self.settings.num_target_samples, self.config.latent_size
        most = chunk_patches(N, M, Z, samples_NRZ.device)
        target_noise = noise.normal_blocks("target", M, Z, most, self.settings.shared_noise_patches)
        terms = energy_score_of_blocks(samples_NRZ, mean_RZ, log_std_RZ, target_noise, self.settings.beta)
        parts = dict(zip(self.part_names, (terms.spread, terms.distance), strict=True))
        return HeadTerms(-terms.score, parts, samples_NRZ)

    def sample(self, hidden_RH: Tensor, noise: Noise, count: int, steps: int | None = None) -> Tensor:
        """Samples (count, R, Z)."""
        self.demand_steps(steps)
        return self.latents(hidden_RH, self.noise(noise, count))

    def demand_steps(self, steps: int | None) -> int:
        """One."""
        if steps not in (None, 1):
            raise UserError(f"an energy head samples in one step, not in {steps}", "sampling steps", "leave them out")
        return 1

    def noise(self, noise: Noise, count: int) -> Tensor:
        """U[-0.5, 0.5) that `latents` takes, (count, R, n)."""
        return noise.uniform("head", count, self.settings.noise_size) - 0.5

    def latents(self, hidden_RH: Tensor, noise_NRn: Tensor | None, run: Runner = run_at_once) -> Tensor:
        """The sample (N, R, Z) that each noise makes of the hidden state.

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
            x_NRH, y_RH = self.input(hidden_RH, noise_NRn.to(hidden_RH))
        for block in self.blocks.values():
            x_NRH = run(block, x_NRH, y_RH)
        if self.output is None:
            return torch.cat([x_NRH, y_RH.unsqueeze(0)])
        samples_NRZ: Tensor = self.output(x_NRH)
        return samples_NRZ

    def zero_weights(self) -> tuple[str, ...]:
        """The last layer's."""
        return ("output.linear_out.weight",) if self.output is not None else ()

    def xavier_weights(self) -> tuple[str, ...]:
        """None."""
        return ()
