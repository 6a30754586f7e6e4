"""Diffusion and flow matching: initial laws, noise, steps, and samplers that find a law that is known."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import DiffusionHeadConfig, FlowHeadConfig, HeadConfig
from calm_megatron.losses.gaussian_diffusion import schedule
from calm_megatron.model.calm import Calm
from calm_megatron.model.heads.denoiser import TIMES, DenoiserInput, DenoisingHead, time_features
from calm_megatron.model.heads.diffusion import DiffusionHead
from calm_megatron.model.heads.flow import FlowHead
from calm_megatron.model.noise import GivenNoise, KeyedNoise, NoiseOfRows
from calm_megatron.parallel.random_streams import RandomStreams
from tests.model.conftest import CALM

Build = Callable[..., Calm]
HEADS: dict[str, HeadConfig] = {
    "diffusion": DiffusionHeadConfig(num_layers=2, num_samples=4, num_sampling_steps=5),
    "flow": FlowHeadConfig(num_layers=2, num_samples=4, num_sampling_steps=3),
}
heads = pytest.mark.parametrize("head", HEADS)


def keyed(rows: int, step: int = 0) -> KeyedNoise:
    return KeyedNoise(RandomStreams(1, torch.device("cpu")), "training", step, [0], rows)


@heads
def test_initial_weights_have_the_official_laws(build: Build, head: str) -> None:
    model = build(head=HEADS[head])
    model.initialise(seed=1)
    for name, weight in model.head.named_parameters():
        last, kind = name.split(".")[-2:]
        if kind == "bias" or last in ("modulation", "linear"):
            assert weight.abs().max() == 0, name
        elif last == "norm":
            assert torch.equal(weight, torch.ones_like(weight)), name
        elif last in ("time_in", "time_out"):
            assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.1), name
        else:
            bound = math.sqrt(6 / sum(weight.shape))
            assert 0.95 * bound < weight.abs().max() < bound, name
            assert float(weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.1), name


@heads
def test_an_untrained_head_says_nothing(build: Build, ids_BT: Tensor, head: str) -> None:
    """The output is zero, so that the loss of flow matching is the mean square of what it should find."""
    model = build(head=HEADS[head])
    model.initialise(seed=1)
    terms = model(ids_BT, KeyedNoise(RandomStreams(1, torch.device("cpu")), "training", 0, [0, 1], 7))
    terms.loss.backward()
    assert model.head.output.linear.weight.grad.abs().max() > 0
    if head == "flow":
        assert float(terms.loss.detach()) == float(terms.parts["flow/velocity_square"])
    else:
        assert float(terms.parts["diffusion/noise_error"]) == pytest.approx(1.0, abs=0.2)
        assert float(terms.loss.detach()) == pytest.approx(sum(float(part) for part in terms.parts.values()), rel=1e-6)


@heads
def test_every_weight_learns(build: Build, ids_BT: Tensor, head: str) -> None:
    model = build(head=HEADS[head]).train()
    model(ids_BT, KeyedNoise(RandomStreams(1, torch.device("cpu")), "training", 0, [0, 1], 7)).loss.backward()
    silent = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert silent == []


@heads
def test_bf16_follows_fp32(build: Build, ids_BT: Tensor, head: str) -> None:
    noise = KeyedNoise(RandomStreams(1, torch.device("cpu")), "training", 0, [0, 1], 7)
    exact, rough = build(head=HEADS[head]), build(head=HEADS[head], dtype=torch.bfloat16)
    terms = rough(ids_BT, noise)
    terms.loss.backward()
    assert terms.loss.dtype == torch.float32
    assert float(terms.loss) == pytest.approx(float(exact(ids_BT, noise).loss), rel=0.03)
    assert all(weight.grad.isfinite().all() for weight in rough.parameters())
    hidden_RH = torch.randn(3, 32, dtype=torch.bfloat16)
    assert rough.head.sample(hidden_RH, keyed(3), 2).dtype == torch.bfloat16


@heads
def test_a_patch_has_the_loss_that_it_has_alone(build: Build, ids_BT: Tensor, head: str) -> None:
    model, kept_BP = build(head=HEADS[head]), torch.rand(2, 8, generator=torch.Generator().manual_seed(1)) > 0.4
    noise = KeyedNoise(RandomStreams(1, torch.device("cpu")), "training", 0, [0, 1], 7)
    kept_R = kept_BP[:, 1:].flatten()
    every = model.score(ids_BT, noise).terms
    kept = model.score(ids_BT, NoiseOfRows(noise, kept_R.nonzero().squeeze(1)), kept_BP=kept_BP).terms
    torch.testing.assert_close(kept.loss_R, every.loss_R[kept_R])


@heads
@torch.no_grad()
def test_samples_belong_to_their_rows_and_depend_on_both(build: Build, head: str) -> None:
    model = build(head=HEADS[head])
    hidden_RH = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    whole = model.head.sample(hidden_RH, keyed(5), 4)
    rows = torch.tensor([3, 0])
    torch.testing.assert_close(model.head.sample(hidden_RH[rows], NoiseOfRows(keyed(5), rows), 4), whole[:, rows])
    torch.testing.assert_close(model.draw(model.head, hidden_RH, keyed(5), 4), whole)
    assert whole.shape == (4, 5, 6)
    assert float((whole[0] - whole[1]).abs().min()) > 0
    assert float((model.head.sample(hidden_RH.flip(0), keyed(5), 4) - whole)[:, 0].abs().max()) > 1e-3
    torch.testing.assert_close(model.head.sample(hidden_RH[:0], keyed(0), 4), torch.empty(4, 0, 6))


@heads
@torch.no_grad()
def test_the_number_of_steps_is_an_option(build: Build, head: str) -> None:
    model, hidden_RH = build(head=HEADS[head]), torch.randn(3, 32)
    usual = model.head.sample(hidden_RH, keyed(3), 2)
    other = model.head.sample(hidden_RH, keyed(3), 2, steps=7)
    own = HEADS[head].num_sampling_steps  # type: ignore[union-attr]
    assert torch.equal(model.head.sample(hidden_RH, keyed(3), 2, steps=own), usual)
    assert not torch.allclose(usual, other)
    for steps in (0, 1001, 1) if head == "diffusion" else (0, 1001):
        with pytest.raises(UserError, match=f"a {head} head cannot sample in {steps} steps"):
            model.head.sample(hidden_RH, keyed(3), 2, steps=steps)


def test_an_energy_head_samples_in_one_step(build: Build) -> None:
    head, hidden_RH = build().head, torch.randn(3, 32)
    assert torch.equal(head.sample(hidden_RH, keyed(3), 2, steps=1), head.sample(hidden_RH, keyed(3), 2))
    with pytest.raises(UserError, match="an energy head samples in one step, not in 2"):
        head.sample(hidden_RH, keyed(3), 2, steps=2)


class KnowingDiffusion(DiffusionHead):
    """Says what is best where latents are normal around 0.7 with a deviation of 0.5."""

    def says(self, hidden_RH: Tensor, noised_NRZ: Tensor, time: Tensor) -> Tensor:
        """The expected noise, and the smaller of both variances."""
        chain = schedule(1000)
        signal, noise = chain.signal[time].unsqueeze(-1), chain.noise[time].unsqueeze(-1)
        expected = noise * (noised_NRZ - signal * 0.7) / ((signal * 0.5).square() + noise.square())
        return torch.cat([expected, torch.full_like(expected, -1.0)], dim=-1)


class KnowingFlow(FlowHead):
    """Says the expected velocity for those latents."""

    def says(self, hidden_RH: Tensor, noised_NRZ: Tensor, time: Tensor) -> Tensor:
        """E[z - x_0] given (1 - t) x_0 + t z."""
        share = time.unsqueeze(-1) / 1000
        variance = (1 - share).square() + (share * 0.5).square()
        return 0.7 + (share * 0.25 - (1 - share)) / variance * (noised_NRZ - share * 0.7)


@pytest.mark.parametrize(("kind", "steps"), [(KnowingDiffusion, 1000), (KnowingFlow, 20)])
def test_a_perfect_network_gives_the_law_of_the_latents(kind: type[DenoisingHead], steps: int) -> None:
    settings = HEADS["diffusion" if kind is KnowingDiffusion else "flow"]
    head = kind(dataclasses.replace(CALM, head=settings))  # type: ignore[call-arg]
    # The smaller of both variances is too small unless steps are short, and few long ones give a narrower law.
    samples = head.sample(torch.zeros(1000, 32), keyed(1000), 2, steps=steps)
    assert float(samples.mean()) == pytest.approx(0.7, abs=0.02)
    assert float(samples.std()) == pytest.approx(0.5, rel=0.03)


def test_times_from_the_table_are_embedded_as_they_would_be_alone() -> None:
    layer = DenoiserInput(hidden_size=8, latent_size=4)
    time = torch.randint(TIMES, (5, 300))
    assert time.numel() > TIMES
    together = layer.embedded(time, torch.float32)
    alone = torch.stack([layer.embedded(row, torch.float32) for row in time])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    weights = list(layer.time_in.parameters()) + list(layer.time_out.parameters())
    for ours, expected in zip(
        torch.autograd.grad(together.square().mean(), weights),
        torch.autograd.grad(alone.square().mean(), weights),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_time_features_are_cosines_then_sines() -> None:
    features = time_features(torch.tensor([[0, 999]]))
    assert features.shape == (1, 2, 256)
    assert torch.equal(features[0, 0], torch.cat([torch.ones(128), torch.zeros(128)]))
    assert float(features[0, 1, 0]) == pytest.approx(math.cos(999), abs=1e-4)
    assert float(features[0, 1, -1]) == pytest.approx(math.sin(999 * 10000 ** (-127 / 128)), abs=1e-6)


def test_given_noise_of_another_shape_is_an_error() -> None:
    noise = GivenNoise({"start": torch.zeros(2, 3, 4)})
    assert noise.normal("start", 2, 4).shape == (2, 3, 4)
    with pytest.raises(ValueError, match=r"noise 'start' is \(2, 3, 4\), not \(2, R, 5\)"):
        noise.normal("start", 2, 5)
