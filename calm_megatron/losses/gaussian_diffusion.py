"""Gaussian diffusion with learned variances (Nichol & Dhariwal 2021), as the official CALM's diffusion head has it.

A cosine schedule of 1000 steps takes a latent z to noise: x_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps. The network
gives eps and, for the variance of the step back from x_t to x_{t-1}, a number v that interpolates the logarithms of its
least (v = -1) and its largest sensible value (v = 1). Tables are made in float64 and kept in fp32.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

TRAINING_STEPS = 1000
_LARGEST_BETA = 0.999
_HALF_BIN = 1 / 255
"""Half the width of the bins in which the last step is scored: the official code has kept that of 8-bit images."""
_EDGE = 0.999
"""From here on outwards a bin reaches to infinity."""


@dataclass(frozen=True)
class Schedule:
    """Tables (steps,) in fp32 of a chain of noising steps."""

    time: tuple[int, ...]
    """Of each step, the step of the whole schedule that the network is told."""
    signal: Tensor
    """sqrt(abar)."""
    noise: Tensor
    """sqrt(1 - abar)."""
    inverse_signal: Tensor
    """sqrt(1 / abar)."""
    noise_to_signal: Tensor
    """sqrt(1 / abar - 1)."""
    posterior_of_clean: Tensor
    """Weight of z in the mean of x_{t-1} given x_t and z."""
    posterior_of_noised: Tensor
    """Weight of x_t in it."""
    log_variance: Tensor
    """Of x_{t-1} given x_t and z; at the first step, where it is none, the second step's."""
    log_beta: Tensor
    """Of x_t given x_{t-1}."""

    @property
    def steps(self) -> int:
        """How many."""
        return len(self.time)


@dataclass(frozen=True)
class StepBack:
    """Mean and log variance (..., Z) of x_{t-1}, as the network believes."""

    mean: Tensor
    log_variance: Tensor


def cosine_abar() -> list[float]:
    """abar of the whole schedule, (1000,): how much of the signal's variance is left after each step."""

    def level(share: float) -> float:
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    abar, left = [], 1.0
    for step in range(TRAINING_STEPS):
        ratio = level((step + 1) / TRAINING_STEPS) / level(step / TRAINING_STEPS)
        left *= 1.0 - min(1.0 - ratio, _LARGEST_BETA)
        abar.append(left)
    return abar


@cache
def schedule(steps: int = TRAINING_STEPS, device: torch.device | None = None) -> Schedule:
    """The schedule, or one of fewer steps at even distances that goes through the same levels of noise.

    Args:
        steps: from 2 to 1000.
        device: where the tables are.
    """
    stride = (TRAINING_STEPS - 1) / (steps - 1)
    time = tuple(round(number * stride) for number in range(steps))
    return schedule_through(time, device)


def schedule_through(time: Sequence[int], device: torch.device | None = None) -> Schedule:
    """The schedule through the given steps of the whole one."""
    whole = torch.tensor(cosine_abar(), dtype=torch.float64)
    abar = whole[list(time)]
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    beta = 1 - abar / before
    variance = beta * (1 - before) / (1 - abar)
    tables = {
        "signal": abar.sqrt(),
        "noise": (1 - abar).sqrt(),
        "inverse_signal": (1 / abar).sqrt(),
        "noise_to_signal": (1 / abar - 1).sqrt(),
        "posterior_of_clean": beta * before.sqrt() / (1 - abar),
        "posterior_of_noised": (1 - before) * (1 - beta).sqrt() / (1 - abar),
        "log_variance": torch.cat([variance[1:2], variance[1:]]).log(),
        "log_beta": beta.log(),
    }
    return Schedule(tuple(time), **{name: table.float().to(device) for name, table in tables.items()})


def noised(chain: Schedule, clean: Tensor, step: Tensor, noise: Tensor) -> Tensor:
    """x_t.

    Args:
        chain: the schedule.
        clean: z, (..., Z).
        step: number of the step in the chain, (...).
        noise: N(0, 1), (..., Z).
    """
    return chain.signal[step].unsqueeze(-1) * clean + chain.noise[step].unsqueeze(-1) * noise


def step_back(chain: Schedule, x: Tensor, step: Tensor, noise: Tensor, variance: Tensor) -> StepBack:
    """What the network's noise and v (..., Z) say of x_{t-1}; z is not clipped."""
    clean = chain.inverse_signal[step].unsqueeze(-1) * x - chain.noise_to_signal[step].unsqueeze(-1) * noise
    share = (variance + 1) / 2
    log_variance = share * chain.log_beta[step].unsqueeze(-1) + (1 - share) * chain.log_variance[step].unsqueeze(-1)
    return StepBack(_posterior_mean(chain, clean, x, step), log_variance)


def variational_bound(chain: Schedule, clean: Tensor, x: Tensor, step: Tensor, believed: StepBack) -> Tensor:
    """The step's term of the bound of -log p(z), (...), in bits a dimension.

    Behind the first step it is the divergence of the true law of x_{t-1} from the believed one; at the first the
    likelihood of z itself, in bins.
    """
    mean, log_variance = _posterior_mean(chain, clean, x, step), chain.log_variance[step].unsqueeze(-1)
    divergence = 0.5 * (
        -1.0
        + believed.log_variance
        - log_variance
        + (log_variance - believed.log_variance).exp()
        + (mean - believed.mean).square() * (-believed.log_variance).exp()
    )
    nats = torch.where((step == 0).unsqueeze(-1), -_log_likelihood_in_bins(clean, believed), divergence)
    return nats.mean(dim=-1) / math.log(2.0)


def _posterior_mean(chain: Schedule, clean: Tensor, x: Tensor, step: Tensor) -> Tensor:
    weights = chain.posterior_of_clean[step].unsqueeze(-1), chain.posterior_of_noised[step].unsqueeze(-1)
    return weights[0] * clean + weights[1] * x


def _log_likelihood_in_bins(clean: Tensor, believed: StepBack) -> Tensor:
    centred, scale = clean - believed.mean, (-0.5 * believed.log_variance).exp()
    upper, lower = _normal_cdf(scale * (centred + _HALF_BIN)), _normal_cdf(scale * (centred - _HALF_BIN))
    at_edges = torch.where(clean > _EDGE, 1.0 - lower, upper - lower)
    return torch.where(clean < -_EDGE, upper, at_edges).clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    """The approximation by tanh that the official code has."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x.pow(3))))
