"""The diffusion head: learns the noise in a noised latent, and samples by taking it away step by step.

Sampling goes through `num_sampling_steps` of the 1000 noise levels, from pure noise, with fresh noise in each step but
the last.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from calm_megatron.config.schema import CalmConfig
from calm_megatron.losses.gaussian_diffusion import noised, schedule, step_back, variational_bound
from calm_megatron.model.heads.denoiser import TIMES, DenoisingHead, Task
from calm_megatron.model.heads.head import Posterior, holds_all
from calm_megatron.model.noise import Noise
from calm_megatron.parallel.tensor_ranks import TensorRanks


class DiffusionHead(DenoisingHead):
    """Gives the noise, and how far to trust it: the v of losses/gaussian_diffusion.py."""

    part_names = ("diffusion/noise_error", "diffusion/variational_bound")
    fewest_steps = 2

    def __init__(
        self, config: CalmConfig, ranks: TensorRanks | None = None, holds: Callable[[str], bool] = holds_all
    ) -> None:
        super().__init__(config, ranks or TensorRanks(), holds, 2 * config.latent_size)

    def task(self, posterior: Posterior, noise: Noise) -> Task:
        """A posterior sample, noised to a level of its own."""
        clean_NRZ = self.posterior_samples(posterior, noise)
        time_NR = (self.own(noise.uniform, "time", 1).squeeze(-1) * TIMES).long().to(clean_NRZ.device)
        noise_NRZ = self.own(noise.normal, "noise").to(clean_NRZ.device)
        chain = schedule(TIMES, clean_NRZ.device)
        return Task(noised(chain, clean_NRZ, time_NR, noise_NRZ), time_NR, clean_NRZ, noise_NRZ)

    def terms(self, said: Tensor, task: Task) -> Tensor:
        """Squared error of the noise plus the bound in bits; the bound trains the variances alone."""
        noise_NRZ, variance_NRZ = said.chunk(2, dim=-1)
        chain = schedule(TIMES, said.device)
        error_NR = (task.noise_NRZ - noise_NRZ).square().mean(dim=-1)
        believed = step_back(chain, task.noised_NRZ, task.time_NR, noise_NRZ.detach(), variance_NRZ)
        bound_NR = variational_bound(chain, task.clean_NRZ, task.noised_NRZ, task.time_NR, believed)
        return torch.stack([error_NR + bound_NR, error_NR, bound_NR], dim=-1)

    def sample(self, hidden_RH: Tensor, noise: Noise, count: int, steps: int | None = None) -> Tensor:
        """Samples (count, R, Z) by ancestral sampling, not clipped."""
        chain = schedule(self.demand_steps(steps), hidden_RH.device)
        Z = self.config.latent_size
        x_NRZ = noise.normal("start", count, Z).to(hidden_RH.device)
        for number in reversed(range(chain.steps)):
            step, time = torch.tensor([[number, chain.time[number]]], device=hidden_RH.device).split(1, dim=1)
            noise_NRZ, variance_NRZ = self.says(hidden_RH, x_NRZ, time).chunk(2, dim=-1)
            believed = step_back(chain, x_NRZ, step, noise_NRZ, variance_NRZ)
            x_NRZ = believed.mean
            if number > 0:
                fresh_NRZ = noise.normal(f"step {number}", count, Z).to(x_NRZ.device)
                x_NRZ = x_NRZ + (0.5 * believed.log_variance).exp() * fresh_NRZ
        return x_NRZ.to(hidden_RH.dtype)
