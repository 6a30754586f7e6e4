"""The autoencoder's loss against its formula, token by token."""

import math

import pytest
import torch

from calm_megatron.losses.reconstruction import clipped_kl, reconstruction_loss

R, K, V, Z = 3, 4, 11, 5


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def kl_of(mean: float, log_std: float) -> float:
    """KL of N(mean, std^2) from N(0, 1)."""
    return 0.5 * (mean**2 + math.exp(log_std) ** 2 - 1 - 2 * log_std)


@pytest.mark.parametrize("clamp", [0.0, 0.5, 2.0])
def test_kl_of_each_element_is_at_least_the_clamp(clamp: float) -> None:
    mean, log_std = torch.randn(R, Z, dtype=torch.float64), torch.randn(R, Z, dtype=torch.float64)
    elements = [[max(kl_of(float(mean[r, z]), float(log_std[r, z])), clamp) for z in range(Z)] for r in range(R)]
    assert float(clipped_kl(mean, log_std, clamp)) == pytest.approx(sum(map(sum, elements)) / R, rel=1e-12)


def test_the_kl_is_that_of_torch() -> None:
    mean, log_std = torch.randn(R, Z), torch.randn(R, Z)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, log_std.exp()), normal(0.0, 1.0)).sum(dim=-1).mean()
    torch.testing.assert_close(clipped_kl(mean, log_std, 0.0), expected)


def test_an_element_below_the_clamp_gets_no_gradient() -> None:
    mean = torch.tensor([[0.1, 3.0]], requires_grad=True)
    log_std = torch.tensor([[0.1, 0.5]], requires_grad=True)
    assert kl_of(0.1, 0.1) < 0.5 < kl_of(3.0, 0.5)
    clipped_kl(mean, log_std, 0.5).backward()
    assert mean.grad is not None and log_std.grad is not None
    assert mean.grad.tolist() == [[0.0, 3.0]]
    assert log_std.grad[0].tolist() == [0.0, pytest.approx(math.exp(1.0) - 1)]


def test_loss_is_k_times_cross_entropy_plus_weighted_kl() -> None:
    logits, ids = torch.randn(R, K, V), torch.randint(V, (R, K))
    mean, log_std = torch.randn(R, Z), torch.randn(R, Z)
    cross_entropy = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
    terms = reconstruction_loss(cross_entropy, K, mean, log_std, kl_weight=0.1, kl_clamp=0.5)
    surprises = [
        torch.logsumexp(logits[r, k].double(), 0) - logits[r, k, ids[r, k]].double() for r in range(R) for k in range(K)
    ]
    assert float(terms.cross_entropy) == pytest.approx(float(sum(surprises)) / (R * K), rel=1e-6)
    assert float(terms.kl) == pytest.approx(float(clipped_kl(mean, log_std, 0.5)))
    assert float(terms.loss) == pytest.approx(K * float(terms.cross_entropy) + 0.1 * float(terms.kl), rel=1e-6)


def test_a_bf16_posterior_is_summed_in_fp32() -> None:
    latent, cross_entropy = torch.randn(2, R, Z).bfloat16(), torch.tensor(3.0)
    terms = reconstruction_loss(cross_entropy, K, latent[0], latent[1], 0.1, 0.5)
    expected = reconstruction_loss(cross_entropy, K, latent[0].float(), latent[1].float(), 0.1, 0.5)
    assert all(term.dtype == torch.float32 for term in terms)
    assert terms == expected
