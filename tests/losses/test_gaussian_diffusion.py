"""The diffusion's tables and its bound against closed forms."""

import math
from itertools import pairwise

import pytest
import torch

from calm_megatron.losses.gaussian_diffusion import (
    StepBack,
    cosine_abar,
    noised,
    schedule,
    step_back,
    variational_bound,
)


def test_the_signal_falls_from_all_to_nothing() -> None:
    abar = cosine_abar()
    assert len(abar) == 1000
    assert all(later < earlier for earlier, later in pairwise(abar))
    assert abar[0] > 0.9999 and abar[-1] < 1e-6
    assert abar[499] == pytest.approx(math.cos((0.5 + 0.008) / 1.008 * math.pi / 2) ** 2, rel=1e-3)


@pytest.mark.parametrize("steps", [2, 7, 100, 1000])
def test_a_shorter_chain_goes_through_the_same_levels(steps: int) -> None:
    whole, chain = schedule(), schedule(steps)
    assert (chain.time[0], chain.time[-1], chain.steps) == (0, 999, steps)
    torch.testing.assert_close(chain.signal, whole.signal[list(chain.time)])
    torch.testing.assert_close(chain.signal.square() + chain.noise.square(), torch.ones(steps))


def test_going_back_with_the_true_noise_gives_the_true_mean() -> None:
    """q(x_{t-1} | x_t, z) by Bayes, for two independent normal laws."""
    chain = schedule(50)
    step, clean, noise = torch.tensor([[30]]), torch.randn(1, 1, 4), torch.randn(1, 1, 4)
    x = noised(chain, clean, step, noise)
    beta, before = chain.log_beta[30].exp(), chain.signal[29].square()
    precision = (1 - beta) / beta + 1 / (1 - before)
    mean = ((1 - beta).sqrt() * x / beta + before.sqrt() * clean / (1 - before)) / precision
    smallest = step_back(chain, x, step, noise, torch.full_like(noise, -1.0))
    torch.testing.assert_close(smallest.mean, mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(smallest.log_variance, (1 / precision).log().expand(1, 1, 4), rtol=1e-3, atol=1e-3)
    largest = step_back(chain, x, step, noise, torch.ones_like(noise))
    torch.testing.assert_close(largest.log_variance, beta.log().expand(1, 1, 4))


def test_the_bound_is_the_divergence_of_normal_laws_in_bits() -> None:
    chain = schedule()
    step, clean, noise = torch.tensor([[400]]), torch.randn(1, 1, 6), torch.randn(1, 1, 6)
    x = noised(chain, clean, step, noise)
    exact = step_back(chain, x, step, noise, torch.full_like(noise, -1.0))
    assert float(variational_bound(chain, clean, x, step, exact).abs()) < 1e-6
    off = StepBack(exact.mean + 0.1, exact.log_variance + 0.3)
    laws = [torch.distributions.Normal(each.mean, (0.5 * each.log_variance).exp()) for each in (exact, off)]
    expected = torch.distributions.kl_divergence(*laws).mean() / math.log(2)
    assert float(variational_bound(chain, clean, x, step, off)) == pytest.approx(float(expected), rel=1e-4)


def test_the_first_step_scores_a_bin() -> None:
    """A bin's mass by the exact distribution function, which the tanh is near; at the edges it reaches to infinity."""
    chain = schedule()
    clean, mean = torch.tensor([[[0.30, -1.5, 1.5]]]), torch.tensor([[[0.31, -1.6, 1.6]]])
    believed = StepBack(mean, torch.full((1, 1, 3), 2 * math.log(0.05)))
    law = torch.distributions.Normal(mean, 0.05)
    upper, lower = law.cdf(clean + 1 / 255), law.cdf(clean - 1 / 255)
    mass = torch.stack([(upper - lower)[..., 0], upper[..., 1], 1 - lower[..., 2]])
    found = variational_bound(chain, clean, clean, torch.zeros(1, 1, dtype=torch.long), believed)
    assert float(found) == pytest.approx(float(-mass.log2().mean()), rel=2e-2)
