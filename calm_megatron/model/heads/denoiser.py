"""The network of the diffusion and the flow-matching head: from a noised latent and its time to what is asked of it.

    y = time embedding + cond_embd(hidden)   (N, R, H)       x = input_proj(noised latent)   (N, R, H)
    x = x + gate * mlp(norm(x) * (1 + scale) + shift)        for each block; shift, scale and gate are linear in silu(y)
    output = linear(norm(x) * (1 + scale) + shift)           (N, R, outputs)

In training each sample has a time of its own. When samples are drawn, all have the same: then y is (1, R, H), and what
is computed of it serves all samples of a patch.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import CalmConfig, DiffusionHeadConfig, FlowHeadConfig
from calm_megatron.model.heads.head import LAYER_NORM_EPSILON, Head, HeadTerms, Posterior, Runner, run_at_once
from calm_megatron.model.noise import LossNoise, Noise
from calm_megatron.model.norms import LayerNorm
from calm_megatron.parallel.tensor_ranks import TensorRanks

TIME_FEATURES = 256
TIMES = 1000
"""The network knows whole times below this."""
_LONGEST_PERIOD = 10000.0


class DenoiserInput(nn.Module):
    """Embeds the noised latent, its time and the hidden state."""

    def __init__(self, hidden_size: int, latent_size: int) -> None:
        super().__init__()
        self.time_in = nn.Linear(TIME_FEATURES, hidden_size)
        self.time_out = nn.Linear(hidden_size, hidden_size)
        self.cond_embd = nn.Linear(hidden_size, hidden_size)
        self.input_proj = nn.Linear(latent_size, hidden_size)

    def forward(self, hidden_RH: Tensor, noised_NRZ: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, R, H) and y, which is (N, R, H) for times (N, R) and (1, R, H) for one (1, 1)."""
        y = self.embedded(time, hidden_RH.dtype) + self.cond_embd(hidden_RH)
        return self.input_proj(noised_NRZ.to(hidden_RH.dtype)), y

    def embedded(self, time: Tensor, dtype: torch.dtype) -> Tensor:
        """Embeddings (..., H) of times; where more are asked for than there are, each once, in a table."""
        if time.numel() > TIMES:
            return F.embedding(time, self.embedded(torch.arange(TIMES, device=time.device), dtype))
        embedded: Tensor = self.time_out(F.silu(self.time_in(time_features(time).to(dtype))))
        return embedded


class DenoiserBlock(nn.Module):
    """One residual block on x, modulated by y."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norm = LayerNorm(hidden_size, eps=LAYER_NORM_EPSILON)
        self.mlp_in = nn.Linear(hidden_size, hidden_size)
        self.mlp_out = nn.Linear(hidden_size, hidden_size)
        self.modulation = nn.Linear(hidden_size, 3 * hidden_size)

    def forward(self, x_NRH: Tensor, y: Tensor) -> Tensor:
        """Returns the new x (N, R, H)."""
        shift, scale, gate = self.modulation(F.silu(y)).chunk(3, dim=-1)
        inner = self.norm(x_NRH) * (1 + scale) + shift
        output: Tensor = x_NRH + gate * self.mlp_out(F.silu(self.mlp_in(inner)))
        return output


class DenoiserOutput(nn.Module):
    """x to what the network says, modulated by y."""

    def __init__(self, hidden_size: int, outputs: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(hidden_size, 2 * hidden_size)
        self.linear = nn.Linear(hidden_size, outputs)

    def forward(self, x_NRH: Tensor, y: Tensor) -> Tensor:
        """(N, R, outputs)."""
        shift, scale = self.modulation(F.silu(y)).chunk(2, dim=-1)
        normed = F.layer_norm(x_NRH.float(), x_NRH.shape[-1:], eps=LAYER_NORM_EPSILON).to(x_NRH.dtype)
        output: Tensor = self.linear(normed * (1 + scale) + shift)
        return output


def time_features(time: Tensor) -> Tensor:
    """Cosines, then sines of a time in [0, 1000) at 128 frequencies: (...) to (..., 256) in fp32."""
    half = TIME_FEATURES // 2
    exponents = torch.arange(half, dtype=torch.float32, device=time.device) / half
    angles = time.float().unsqueeze(-1) * torch.exp(-math.log(_LONGEST_PERIOD) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


@dataclass(frozen=True)
class Task:
    """What the network is given to train on, for this tensor rank's samples, and what it should find."""

    noised_NRZ: Tensor
    time_NR: Tensor
    """Whole numbers below 1000."""
    clean_NRZ: Tensor
    noise_NRZ: Tensor


class DenoisingHead(Head):
    """A head that learns to denoise samples of the posterior: N of them for each patch, each at a time of its own."""

    loss_has_samples = False
    fewest_steps: int

    def __init__(self, config: CalmConfig, ranks: TensorRanks, holds: Callable[[str], bool], outputs: int) -> None:
        head, H = config.head, config.hidden_size
        assert isinstance(head, DiffusionHeadConfig | FlowHeadConfig)
        super().__init__(
            config,
            ranks,
            DenoiserInput(H, config.latent_size) if holds("head.input") else None,
            {str(number): DenoiserBlock(H) for number in range(head.num_layers) if holds(f"head.blocks.{number}")},
            DenoiserOutput(H, outputs) if holds("head.output") else None,
        )
        self.settings = head

    def loss(
        self, state: Tensor, posterior: Posterior, noise: LossNoise, run: Runner = run_at_once
    ) -> HeadTerms | Tensor:
        """The mean over N samples, of which each tensor rank has its share; between stages x and y go on."""
        task = None
        if self.input is not None or self.output is not None:
            task = self.task(posterior, noise)
        if self.input is None:
            x_NRH, y_NRH = state.chunk(2)
        else:
            assert task is not None
            x_NRH, y_NRH = self.input(state, task.noised_NRZ, task.time_NR)
        for block in self.blocks.values():
            x_NRH = run(block, x_NRH, y_NRH)
        if self.output is None:
            return torch.cat([x_NRH, y_NRH])
        assert task is not None
        # Only these few numbers of a sample travel between the tensor ranks.
        terms_NRC = self.ranks.gather_samples(self.terms(self.output(x_NRH, y_NRH).float(), task))
        loss_R, *parts = terms_NRC.mean(dim=0).unbind(dim=-1)
        return HeadTerms(loss_R, dict(zip(self.part_names, (part.detach() for part in parts), strict=True)))

    def says(self, hidden_RH: Tensor, noised_NRZ: Tensor, time: Tensor) -> Tensor:
        """What the whole network says of noised latents, (N, R, outputs) in fp32; times are (N, R) or (1, 1)."""
        assert self.input is not None and self.output is not None
        x_NRH, y = self.input(hidden_RH, noised_NRZ, time)
        for block in self.blocks.values():
            x_NRH = block(x_NRH, y)
        output: Tensor = self.output(x_NRH, y)
        return output.float()

    def posterior_samples(self, posterior: Posterior, noise: Noise) -> Tensor:
        """This rank's share of N samples of the posterior, (N, R, Z)."""
        mean_RZ, log_std_RZ = posterior()
        return mean_RZ.float() + self.own(noise.normal, "target").to(mean_RZ.device) * log_std_RZ.float().exp()

    def own(self, draw: Callable[[str, int, int], Tensor], purpose: str, size: int | None = None) -> Tensor:
        """This rank's share of what is drawn for N samples, (N, R, size); of the size of a latent, if not told else."""
        return self.ranks.own_rows(draw(purpose, self.settings.num_samples, size or self.config.latent_size))

    def demand_steps(self, steps: int | None) -> int:
        """Those asked for, or the config's."""
        steps = self.settings.num_sampling_steps if steps is None else steps
        if not self.fewest_steps <= steps <= TIMES:
            raise UserError(
                f"a {self.settings.type} head cannot sample in {steps} steps",
                "sampling steps",
                f"give {self.fewest_steps} to {TIMES}",
            )
        return steps

    @abstractmethod
    def task(self, posterior: Posterior, noise: Noise) -> Task:
        """What this rank's samples are trained on."""

    @abstractmethod
    def terms(self, said: Tensor, task: Task) -> Tensor:
        """Loss and its parts, (N, R, 1 + parts), of what the network says (N, R, outputs)."""

    def zero_weights(self) -> tuple[str, ...]:
        """Those of the modulations and of the last layer: blocks start as identities, and the output as zero."""
        names = (name for name, _ in self.named_parameters())
        return tuple(name for name in names if name.endswith(("modulation.weight", "output.linear.weight")))

    def xavier_weights(self) -> tuple[str, ...]:
        """The other matrices, but not those of the time embedding."""
        matrices = ("cond_embd.weight", "input_proj.weight", "mlp_in.weight", "mlp_out.weight")
        return tuple(name for name, _ in self.named_parameters() if name.endswith(matrices))
