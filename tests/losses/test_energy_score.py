"""The energy score against the plain formula in float64, at its singular points, and as a proper score."""

import math

import pytest
import torch
from torch import Tensor

from calm_megatron.losses import energy_score as module
from calm_megatron.losses.energy_score import (
    EnergyTerms,
    NoiseBlock,
    chunk_patches,
    energy_score,
    energy_score_of_blocks,
)

BETAS = (0.25, 0.5, 1.0, 1.5, 1.9)
N, M, R, Z = 6, 20, 5, 7


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def plain(samples_NRZ: Tensor, mean_RZ: Tensor, log_std_RZ: Tensor, noise_MRZ: Tensor, beta: float) -> EnergyTerms:
    """All pairs at once, in float64, differentiable as long as no two points coincide."""
    samples, mean, log_std, noise = (tensor.double() for tensor in (samples_NRZ, mean_RZ, log_std_RZ, noise_MRZ))
    targets_MRZ = mean + noise * log_std.exp()
    count = len(samples)
    differences = [samples[i] - samples[j] for i in range(count) for j in range(count) if i != j]
    spread = sum(difference.norm(dim=-1).pow(beta) for difference in differences) / (count * (count - 1))
    distance = (samples[:, None] - targets_MRZ[None]).norm(dim=-1).pow(beta).mean(dim=(0, 1))
    return EnergyTerms(spread - 2 * distance, spread, distance)


def inputs(patches: int = R) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.randn(N, patches, Z),
        3 * torch.randn(patches, Z),
        0.5 * torch.randn(patches, Z) - 0.5,
        torch.randn(M, patches, Z),
    )


def relative(ours: Tensor, expected: Tensor) -> float:
    return float((ours.double() - expected.double()).abs().max() / expected.double().abs().max())


@pytest.mark.parametrize("beta", BETAS)
def test_score_and_gradient_are_those_of_the_plain_formula(beta: float) -> None:
    samples, mean, log_std, noise = inputs()
    weights_R = torch.rand(R) + 0.5
    ours, expected = samples.clone().requires_grad_(), samples.double().requires_grad_()
    terms, reference = energy_score(ours, mean, log_std, noise, beta), plain(expected, mean, log_std, noise, beta)
    for mine, theirs in zip(
        (terms.score, terms.spread, terms.distance),
        (reference.score, reference.spread, reference.distance),
        strict=True,
    ):
        assert mine.shape == (R,)
        assert relative(mine.detach(), theirs.detach()) < 1e-6
    (terms.score * weights_R).sum().backward()
    (reference.score * weights_R.double()).sum().backward()
    assert ours.grad is not None and expected.grad is not None
    assert relative(ours.grad, expected.grad) < 1e-5


@pytest.mark.parametrize("beta", BETAS)
def test_gradient_by_finite_differences(beta: float) -> None:
    samples, mean, log_std, noise = inputs()
    samples.requires_grad_()
    energy_score(samples, mean, log_std, noise, beta).score.sum().backward()
    assert samples.grad is not None
    step = 1e-5
    direction = torch.randn_like(samples).double()
    ahead, behind = (
        plain(samples.detach().double() + sign * step * direction, mean, log_std, noise, beta).score.sum()
        for sign in (1, -1)
    )
    assert float((samples.grad.double() * direction).sum()) == pytest.approx(
        float(ahead - behind) / (2 * step), rel=1e-4
    )


@pytest.mark.parametrize("beta", [0.01, *BETAS, 1.99])
@pytest.mark.parametrize("gap", [0.0, 1e-30, 1e-22, 1e-20, 1e-12, 1e-4])
def test_gradients_stay_finite_where_points_coincide(beta: float, gap: float) -> None:
    """All samples are one point, as at the start of training, or so close that squares of distances underflow."""
    samples = torch.zeros(N, 3, Z)
    samples[:, :, 0] = gap * torch.arange(N)[:, None]
    samples.requires_grad_()
    noise = torch.randn(M, 3, Z)
    noise[: M // 2, 0] = 0.0  # targets on the samples
    noise[:, 1] = 0.0
    terms = energy_score(samples, torch.zeros(3, Z), torch.zeros(3, Z), noise, beta)
    terms.score.sum().backward()
    assert samples.grad is not None
    assert samples.grad.isfinite().all() and terms.score.isfinite().all()


@pytest.mark.parametrize("beta", BETAS)
def test_coinciding_samples_are_all_drawn_to_the_targets(beta: float) -> None:
    samples = torch.zeros(N, 1, Z, requires_grad=True)
    mean = torch.randn(1, Z)
    noise = torch.zeros(M, 1, Z)
    energy_score(samples, mean, torch.zeros(1, Z), noise, beta).score.sum().backward()
    assert samples.grad is not None
    # Only the pull of the targets is left: d(-2 |x - y|^beta)/dx at x = 0, a share of 1/N for each sample.
    expected = 2 * beta * mean.norm() ** (beta - 2) * mean / N
    assert torch.allclose(samples.grad[:, 0], expected.expand(N, Z), rtol=1e-5)


def test_a_pair_apart_keeps_its_exact_gradient_beside_coinciding_ones() -> None:
    samples = torch.zeros(3, 1, 1)
    samples[2] = 2.0
    samples.requires_grad_()
    energy_score(samples, torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1, 1), beta=1.0).score.sum().backward()
    # Samples 0, 0, 2 and one target 1: spread = 8/6, distance = 1.
    assert samples.grad is not None
    expected = torch.tensor([-1 / 3 + 2 / 3, -1 / 3 + 2 / 3, 2 / 3 - 2 / 3])
    assert torch.allclose(samples.grad.flatten(), expected, atol=1e-6)


def test_terms_of_a_case_written_out() -> None:
    samples = torch.tensor([[[0.0]], [[3.0]]])
    terms = energy_score(samples, torch.tensor([[1.0]]), torch.zeros(1, 1), torch.tensor([[[0.0]], [[1.0]]]), beta=1.0)
    # Targets 1 and 2: distances 1, 2, 2, 1; the two samples are 3 apart.
    assert (terms.spread.item(), terms.distance.item(), terms.score.item()) == (3.0, 1.5, 0.0)


def test_chunks_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, mean, log_std, noise = inputs(patches=11)
    results = []
    for chunk in (1000, 4, 1):
        monkeypatch.setattr(module, "CHUNK_NUMBERS", chunk * M * Z)
        own = samples.clone().requires_grad_()
        score = energy_score(own, mean, log_std, noise).score
        score.sum().backward()
        results.append((score.detach(), own.grad))
    for score, gradient in results[1:]:
        torch.testing.assert_close(score, results[0][0])
        torch.testing.assert_close(gradient, results[0][1])


def test_more_patches_than_a_chunk_holds() -> None:
    samples, mean, log_std, noise = inputs(patches=chunk_patches(N, M, Z) + 3)
    assert (
        relative(energy_score(samples, mean, log_std, noise).score, plain(samples, mean, log_std, noise, 1.0).score)
        < 1e-6
    )


@pytest.mark.parametrize("beta", BETAS)
def test_scaling_the_space_scales_the_score(beta: float) -> None:
    samples, mean, log_std, noise = inputs()
    factor = 2.5
    score = energy_score(samples, mean, log_std, noise, beta).score
    scaled = energy_score(factor * samples, factor * mean, log_std + math.log(factor), noise, beta).score
    torch.testing.assert_close(scaled, factor**beta * score, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beta", BETAS)
def test_moving_the_space_changes_nothing(beta: float) -> None:
    samples, mean, log_std, noise = inputs()
    score = energy_score(samples, mean, log_std, noise, beta).score
    # 64 is a power of two, so the move itself costs only the digits that the sum has no room for.
    moved = energy_score(samples + 64, mean + 64, log_std, noise, beta).score
    torch.testing.assert_close(moved, score, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beta", BETAS)
def test_the_true_distribution_scores_best(beta: float) -> None:
    """Properness, by simulation: every other sampler is worse by many standard errors."""
    patches = 20_000
    mean, log_std = torch.zeros(patches, 2), torch.zeros(patches, 2)
    draws, noise = torch.randn(4, patches, 2), torch.randn(2, patches, 2)
    true = energy_score(draws, mean, log_std, noise, beta).score
    for worse in (draws + 0.7, 0.3 * draws, 2.0 * draws, torch.zeros_like(draws), draws.abs()):
        margin = true - energy_score(worse, mean, log_std, noise, beta).score
        assert margin.mean() > 5 * margin.std() / math.sqrt(patches)


def test_bf16_samples_get_bf16_gradients_of_fp32_sums() -> None:
    samples, mean, log_std, noise = inputs()
    low = samples.bfloat16().requires_grad_()
    high = samples.bfloat16().float().requires_grad_()
    score = energy_score(low, mean.bfloat16(), log_std.bfloat16(), noise).score
    expected = energy_score(high, mean.bfloat16(), log_std.bfloat16(), noise).score
    score.sum().backward()
    expected.sum().backward()
    assert score.dtype == torch.float32
    assert torch.equal(score, expected)
    assert low.grad is not None and high.grad is not None
    assert low.grad.dtype == torch.bfloat16
    assert torch.equal(low.grad, high.grad.bfloat16())


def test_only_the_samples_get_a_gradient() -> None:
    samples, mean, log_std, noise = inputs()
    terms = energy_score(samples.requires_grad_(), mean.requires_grad_(), log_std, noise)
    assert not terms.spread.requires_grad and not terms.distance.requires_grad
    terms.score.sum().backward()
    assert samples.grad is not None and mean.grad is None


def test_no_patches_give_no_terms() -> None:
    terms = energy_score(torch.zeros(N, 0, Z), torch.zeros(0, Z), torch.zeros(0, Z), torch.zeros(M, 0, Z))
    assert terms.score.shape == (0,)


def demand_plain(ours: Tensor, expected: Tensor, terms: EnergyTerms, reference: EnergyTerms) -> None:
    """Values within 1e-5 and gradients within 1e-4 of the plain formula in float64."""
    for mine, theirs in zip(
        (terms.score, terms.spread, terms.distance),
        (reference.score, reference.spread, reference.distance),
        strict=True,
    ):
        assert relative(mine.detach(), theirs.detach()) < 1e-5
    terms.score.sum().backward()
    reference.score.sum().backward()
    assert ours.grad is not None and expected.grad is not None
    assert relative(ours.grad, expected.grad) < 1e-4


@pytest.mark.parametrize("beta", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("gap", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("shared", [False, True])
def test_vectors_that_all_but_meet_keep_their_digits(beta: float, gap: float, shared: bool) -> None:
    """Samples near to targets, and to each other, far from the mean that they are centred on.

    With a mean of 0 and a deviation of 1 the targets themselves have no rounding that the gap could drown in.
    """
    mean, log_std, noise = torch.zeros(R, Z), torch.zeros(R, Z), torch.randn(M, R, Z)
    if shared:
        noise = noise[:, :1].expand(M, R, Z)
    samples = noise[[0, 0, 1, 1, 2, 3]] + gap * torch.randn(N, R, Z)
    ours, expected = samples.clone().requires_grad_(), samples.double().requires_grad_()
    block = NoiseBlock(R, noise[:, :1] if shared else noise)
    terms = energy_score_of_blocks(ours, mean, log_std, [block], beta)
    demand_plain(ours, expected, terms, plain(expected, mean, log_std, noise, beta))


@pytest.mark.parametrize("beta", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("chunk", [1 << 20, 100])
def test_noise_that_patches_share_is_the_same_noise_for_each(
    beta: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_NUMBERS", chunk)
    samples, mean, log_std, _ = inputs(patches=11)
    blocks = [
        NoiseBlock(4, torch.randn(M, 1, Z)),
        NoiseBlock(4, torch.randn(M, 1, Z)),
        NoiseBlock(3, torch.randn(M, 1, Z)),
    ]
    whole = torch.cat([noise.expand(M, patches, Z) for patches, noise in blocks], dim=1)
    ours, expected = samples.clone().requires_grad_(), samples.double().requires_grad_()
    terms = energy_score_of_blocks(ours, mean, log_std, blocks, beta)
    demand_plain(ours, expected, terms, plain(expected, mean, log_std, whole, beta))


@pytest.mark.parametrize("patches", [R - 1, R + 1])
def test_noise_for_other_patches_is_refused(patches: int) -> None:
    samples, mean, log_std, _ = inputs()
    with pytest.raises(ValueError, match="does not fit the 5 patches"):
        energy_score_of_blocks(samples, mean, log_std, [NoiseBlock(patches, torch.randn(M, patches, Z))])


def test_shared_noise_has_no_bias() -> None:
    """Over many draws, each patch's mean score with shared noise is that with its own."""
    patches, times = 4, 4000
    samples, mean, log_std = torch.randn(2, patches, 3), torch.randn(patches, 3), torch.zeros(patches, 3)
    many = [tensor.repeat_interleave(times, dim=-2) for tensor in (samples, mean, log_std)]
    own = energy_score(*many, torch.randn(2, patches * times, 3)).score.view(patches, times)
    # All draws of the four patches beside one another: the same noise for the four.
    noise = torch.randn(2, 1, times, 3).expand(2, patches, times, 3).flatten(1, 2)
    shared = energy_score(*many, noise).score.view(patches, times)
    error = ((own.var(dim=1) + shared.var(dim=1)) / times).sqrt()
    assert ((own.mean(dim=1) - shared.mean(dim=1)).abs() < 5 * error).all()
    # What sharing costs: the patches err together, so that their mean errs more.
    assert shared.mean(dim=0).var() > 1.2 * own.mean(dim=0).var()
