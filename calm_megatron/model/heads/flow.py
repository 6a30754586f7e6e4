"""The flow-matching head (Lipman et al. 2023): learns the velocity on the straight line from noise to a latent.

    x_t = (1 - t) x_0 + t z,    velocity = z - x_0,    t in [0, 1)

Sampling follows the velocity from noise at t = 0 to t = 1 by the midpoint rule, two calls of the network a step.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from calm_megatron.config.schema import CalmConfig
from calm_megatron.model.heads.denoiser import TIMES, DenoisingHead, Task
from calm_megatron.model.heads.head import Posterior, holds_all
from calm_megatron.model.noise import Noise
from calm_megatron.parallel.tensor_ranks import TensorRanks


class FlowHead(DenoisingHead):
    """Gives the velocity."""

    part_names = ("flow/velocity_square",)
    """The mean square of what is to be found, which is the loss of a head that says zero."""
    fewest_steps = 1

    def __init__(
        self, config: CalmConfig, ranks: TensorRanks | None = None, holds: Callable[[str], bool] = holds_all
    ) -> None:
        super().__init__(config, ranks or TensorRanks(), holds, config.latent_size)

    def task(self, posterior: Posterior, noise: Noise) -> Task:
        """A posterior sample and noise, and a point between them."""
        clean_NRZ = self.posterior_samples(posterior, noise)
        share_NR1 = self.own(noise.uniform, "time", 1).to(clean_NRZ.device)
        noise_NRZ = self.own(noise.normal, "source").to(clean_NRZ.device)
        between_NRZ = (1 - share_NR1) * noise_NRZ + share_NR1 * clean_NRZ
        # The network is told whole thousandths.
        return Task(between_NRZ, (share_NR1.squeeze(-1) * TIMES).long(), clean_NRZ, noise_NRZ)

    def terms(self, said: Tensor, task: Task) -> Tensor:
        """Squared error of the velocity."""
        velocity_NRZ = task.clean_NRZ - task.noise_NRZ
        errors = (said - velocity_NRZ).square().mean(dim=-1), velocity_NRZ.square().mean(dim=-1)
        return torch.stack(errors, dim=-1)

    def sample(self, hidden_RH: Tensor, noise: Noise, count: int, steps: int | None = None) -> Tensor:
        """Samples (count, R, Z)."""
        number = self.demand_steps(steps)
        x_NRZ = noise.normal("start", count, self.config.latent_size).to(hidden_RH.device)
        for step in range(number):
            # Whole thousandths without rounding: 1000 half / (2 steps).
            first, middle = (
                torch.full((1, 1), TIMES * half // (2 * number), device=hidden_RH.device)
                for half in (2 * step, 2 * step + 1)
            )
            halfway_NRZ = x_NRZ + self.says(hidden_RH, x_NRZ, first) / (2 * number)
            x_NRZ = x_NRZ + self.says(hidden_RH, halfway_NRZ, middle) / number
        return x_NRZ.to(hidden_RH.dtype)
