"""Validation scores against plain counting, sequence by sequence, and their independence of how the work is cut."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from calm_megatron.checkpoint.load import load_autoencoder, load_calm, saved_config
from calm_megatron.config.schema import AutoencoderConfig, CalmConfig, EvaluationConfig
from calm_megatron.data.batch import read_batch
from calm_megatron.data.data_splits import DataSplits
from calm_megatron.data.patching import PatchedDataset
from calm_megatron.evaluate.validation import (
    AutoencoderScores,
    EvaluationPlan,
    validate_autoencoder,
    validate_calm,
)
from calm_megatron.model.autoencoder import Autoencoder, AutoencoderNoise, FrozenAutoencoder
from calm_megatron.model.calm import Calm
from calm_megatron.model.initialise import initialise
from calm_megatron.parallel.grid import Grid
from calm_megatron.parallel.random_streams import RandomStreams

SEED, K, P = 5, 4, 8
SIGMAS = (0.0, 0.5, 5.0)
Plan = Callable[..., EvaluationPlan]


@pytest.fixture(scope="module")
def autoencoder(runs: Path, dataset: PatchedDataset) -> Autoencoder:
    """The run's autoencoder after some training, so that accuracies lie between zero and one."""
    model = load_autoencoder(runs / "ae")
    ids_RK = read_batch(dataset, range(16)).ids_BT.view(-1, K)
    streams = RandomStreams(SEED, torch.device("cpu"))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(40):
        optimizer.zero_grad()
        model(ids_RK, AutoencoderNoise.draw(model.config, streams, step, range(16), P)).loss.backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def calm(runs: Path, grid: Grid) -> Calm:
    """The run's CALM."""
    return load_calm(runs / "calm")


@pytest.fixture(scope="module")
def dataset(runs: Path) -> PatchedDataset:
    """The validation sequences of the run's data."""
    config = saved_config(runs / "ae")
    assert isinstance(config.model, AutoencoderConfig)
    data = DataSplits.open(config.data, patch_size=K, seed=SEED, vocab_size=config.model.vocab_size)
    assert data.valid is not None
    return data.valid


@pytest.fixture(scope="module")
def plan(dataset: PatchedDataset, grid: Grid) -> Plan:
    """Makes plans over the validation set; over its beginning unless told otherwise."""

    def build(micro_batch_size: int = 4, sequences: int | None = 10) -> EvaluationPlan:
        return EvaluationPlan(dataset, micro_batch_size, sequences, grid, RandomStreams(SEED, grid.device))

    return build


def hits(model: Autoencoder, latent_RZ: Tensor, ids_RK: Tensor) -> int:
    """Tokens whose logit is the largest."""
    logits_RKV = model.logits(latent_RZ)
    return int((logits_RKV.gather(2, ids_RK.unsqueeze(-1)).squeeze(-1) == logits_RKV.amax(dim=-1)).sum())


@torch.no_grad()
def counted_autoencoder(model: Autoencoder, dataset: PatchedDataset, sequences: int) -> AutoencoderScores:
    """The scores by one loop over sequences."""
    streams = RandomStreams(SEED, torch.device("cpu"))
    Z = model.config.latent_size
    mean_hits, sample_hits, noisy_hits = 0, 0, [0] * len(SIGMAS)
    surprise, kl, means = 0.0, 0.0, []
    for number in range(sequences):
        ids_RK = torch.from_numpy(dataset.sequence(number).ids_T).view(-1, K)
        noise_RZ = streams.normal("evaluation latent", 0, [number], (P, Z))[0]
        mean_RZ, log_std_RZ = model.encoder(ids_RK)
        sample_RZ = mean_RZ + noise_RZ * log_std_RZ.exp()
        mean_hits += hits(model, mean_RZ, ids_RK)
        sample_hits += hits(model, sample_RZ, ids_RK)
        for place, sigma in enumerate(SIGMAS):
            noisy_hits[place] += hits(model, mean_RZ + sigma * noise_RZ, ids_RK)
        log_p_RKV = model.logits(sample_RZ).double().log_softmax(dim=-1)
        surprise -= float(log_p_RKV.gather(2, ids_RK.unsqueeze(-1)).sum())
        elements_RZ = 0.5 * (mean_RZ**2 + (2 * log_std_RZ).exp() - 1 - 2 * log_std_RZ)
        kl += float(elements_RZ.clamp(min=model.config.kl_clamp).double().sum())
        means.append(mean_RZ.double())
    tokens = sequences * P * K
    return AutoencoderScores(
        token_accuracy_mean=mean_hits / tokens,
        token_accuracy_sample=sample_hits / tokens,
        cross_entropy=surprise / tokens,
        kl=kl / (sequences * P),
        collapsed_dimensions=int((torch.cat(means).var(dim=0, correction=0) < 0.01).sum()),
        robustness=tuple(zip(SIGMAS, (count / tokens for count in noisy_hits), strict=True)),
        tokens=tokens,
    )


def same(ours: AutoencoderScores, expected: AutoencoderScores) -> None:
    for field in dataclasses.fields(AutoencoderScores):
        mine, theirs = (torch.tensor(getattr(scores, field.name), dtype=torch.float64) for scores in (ours, expected))
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=0, msg=field.name)


@pytest.mark.parametrize("sequences", [None, 5])
def test_autoencoder_scores_are_those_of_plain_counting(
    autoencoder: Autoencoder, dataset: PatchedDataset, plan: Plan, sequences: int | None
) -> None:
    expected = counted_autoencoder(autoencoder, dataset, sequences or dataset.sequences_per_epoch)
    assert 0.1 < expected.token_accuracy_mean < 0.9
    same(validate_autoencoder(autoencoder, plan(sequences=sequences), SIGMAS), expected)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 1000])
def test_autoencoder_scores_do_not_depend_on_the_micro_batch(
    autoencoder: Autoencoder, plan: Plan, micro_batch_size: int
) -> None:
    expected = validate_autoencoder(autoencoder, plan(), SIGMAS)
    same(validate_autoencoder(autoencoder, plan(micro_batch_size), SIGMAS), expected)


def test_robustness_without_noise_is_the_accuracy_of_the_mean(autoencoder: Autoencoder, plan: Plan) -> None:
    scores = validate_autoencoder(autoencoder, plan(), SIGMAS)
    curve = dict(scores.robustness)
    assert tuple(curve) == SIGMAS
    assert curve[0.0] == scores.token_accuracy_mean
    assert curve[0.0] > curve[5.0]
    assert validate_autoencoder(autoencoder, plan(), ()).robustness == ()


def test_constant_dimensions_are_counted_as_collapsed(runs: Path, plan: Plan) -> None:
    model = load_autoencoder(runs / "ae")
    before = validate_autoencoder(model, plan(), ()).collapsed_dimensions
    weight = model.encoder.hidden_to_latent.weight  # its first rows give the mean
    with torch.no_grad():
        weight[:3] = 0.0
        model.encoder.hidden_to_latent.bias[0] = 7.0
    assert before == 0
    assert validate_autoencoder(model, plan(), ()).collapsed_dimensions == 3
    with torch.no_grad():
        weight[: model.config.latent_size] = 0.0
    assert validate_autoencoder(model, plan(), ()).collapsed_dimensions == model.config.latent_size


def test_a_broken_autoencoder_does_not_look_perfect(runs: Path, plan: Plan) -> None:
    model = load_autoencoder(runs / "ae")
    with torch.no_grad():
        model.decoder.norm.weight[0] = math.nan
    scores = validate_autoencoder(model, plan(), ())
    assert math.isnan(scores.cross_entropy)
    assert scores.token_accuracy_mean < 0.5


def equal_so_far(left: list[int], right: list[int]) -> list[int]:
    return [int(left[:n] == right[:n]) for n in (1, 2, 3, 4)]


class CountedCalm(NamedTuple):
    """CALM's scores by plain loops."""

    spread: float
    distance: float
    brier: list[float]
    patches: int


@torch.no_grad()
def counted_calm(model: Calm, dataset: PatchedDataset, sequences: int, masked: bool) -> CountedCalm:
    """One loop over sequences and patches, all pairs of points in float64."""
    streams = RandomStreams(SEED, torch.device("cpu"))
    head = model.config.head
    N, M, n, Z = head.num_samples, head.num_target_samples, head.noise_size, model.config.latent_size
    spreads, distances, brier = [], [], []
    for number in range(sequences):
        sequence = dataset.sequence(number)
        ids_1T = torch.from_numpy(sequence.ids_T)[None]
        documents_1P = torch.from_numpy(sequence.documents_P)[None] if masked else None
        hidden_PH = model.hidden_states(ids_1T, documents_1P)[0]
        uniform_PNn = streams.uniform("evaluation head", 0, [number], (P - 1, N, n))[0] - 0.5
        normal_PMZ = streams.normal("evaluation target", 0, [number], (P - 1, M, Z))[0]
        for patch in range(1, P):
            target_K = ids_1T[0, patch * K : (patch + 1) * K]
            mean_1Z, log_std_1Z = model.autoencoder.encode(target_K[None])
            samples_NZ = model.head.latents(hidden_PH[patch - 1][None], uniform_PNn[patch - 1][:, None])[:, 0]
            targets_MZ = (mean_1Z + normal_PMZ[patch - 1] * log_std_1Z.exp()).double()
            spreads.append(float(torch.cdist(samples_NZ.double(), samples_NZ.double()).sum()) / (N * (N - 1)))
            distances.append(float(torch.cdist(samples_NZ.double(), targets_MZ).mean()))
            first, second = model.autoencoder.tokens(samples_NZ[:2]).tolist()
            target = target_K.tolist()
            brier.append([
                int(first[:count] == target[:count])
                + int(second[:count] == target[:count])
                - int(first[:count] == second[:count])
                for count in (1, 2, 3, 4)
            ])  # fmt: skip
    rows = len(brier)
    return CountedCalm(
        sum(spreads) / rows, sum(distances) / rows, [sum(row) / rows for row in zip(*brier, strict=True)], rows
    )


@pytest.mark.parametrize(("sequences", "masked"), [(9, True), (3, False)])
def test_calm_scores_are_those_of_plain_counting(
    calm: Calm, dataset: PatchedDataset, plan: Plan, sequences: int, masked: bool
) -> None:
    expected = counted_calm(calm, dataset, sequences, masked)
    scores = validate_calm(calm, plan(sequences=sequences), masked, EvaluationConfig())
    assert any(expected.brier)
    assert scores.brier is not None
    assert scores.brier.brier == pytest.approx(expected.brier, abs=1e-12)
    assert (scores.patches, scores.brier.patches) == (expected.patches, expected.patches)
    distances = {"energy/distance_samples": expected.spread, "energy/distance_targets": expected.distance}
    assert scores.parts == pytest.approx(distances, rel=1e-5)
    assert scores.loss == pytest.approx(2 * expected.distance - expected.spread, rel=1e-4)


@torch.no_grad()
def test_the_mask_of_documents_shows(calm: Calm, plan: Plan) -> None:
    masked, open_ = (validate_calm(calm, plan(), masked, EvaluationConfig()) for masked in (True, False))
    assert masked.loss != pytest.approx(open_.loss, rel=1e-6)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 1000])
def test_calm_scores_do_not_depend_on_the_micro_batch(calm: Calm, plan: Plan, micro_batch_size: int) -> None:
    expected = validate_calm(calm, plan(), True, EvaluationConfig())
    scores = validate_calm(calm, plan(micro_batch_size), True, EvaluationConfig())
    assert scores.brier == expected.brier  # whole numbers: exactly
    assert scores.loss == pytest.approx(expected.loss, rel=1e-5)
    assert scores.parts == pytest.approx(expected.parts, rel=1e-5)


def test_more_pairs_average_over_disjoint_samples(calm: Calm, plan: Plan) -> None:
    """The mean over four pairs is the mean of what each pair gives alone."""

    def pair_alone(pair: int) -> tuple[float, ...]:
        shifted = Calm(calm.config, calm.autoencoder)
        shifted.load_state_dict(calm.state_dict())
        latents = shifted.head.latents
        shifted.head.latents = lambda hidden_RH, noise_NRn, run: latents(hidden_RH, noise_NRn.roll(-2 * pair, dims=0))
        brier = validate_calm(shifted.eval(), plan(), True, EvaluationConfig()).brier
        assert brier is not None
        return brier.brier

    singles = [pair_alone(pair) for pair in range(4)]
    assert len(set(singles)) > 1
    several = validate_calm(calm, plan(), True, EvaluationConfig(brier_pairs=4)).brier
    assert several is not None
    assert several.brier == pytest.approx([sum(row) / 4 for row in zip(*singles, strict=True)])


def test_the_level_of_the_interval_is_the_one_asked_for(calm: Calm, plan: Plan) -> None:
    brier = validate_calm(calm, plan(), True, EvaluationConfig(confidence=0.5)).brier
    assert brier is not None and brier.confidence == 0.5


@pytest.fixture(scope="module")
def short(runs: Path, grid: Grid) -> tuple[Calm, PatchedDataset]:
    """A model of patches of two tokens, and its validation sequences."""
    config = saved_config(runs / "calm")
    assert isinstance(config.model, CalmConfig)
    sizes = {"vocab_size": config.model.vocab_size, "patch_size": 2, "latent_size": 8}
    autoencoder = Autoencoder(AutoencoderConfig(hidden_size=16, ffn_hidden_size=16, **sizes))
    initialise(autoencoder, seed=1, std=0.3)
    model = Calm(dataclasses.replace(config.model, patch_size=2), FrozenAutoencoder(autoencoder))
    initialise(model, seed=1, std=0.3)
    data = DataSplits.open(config.data, patch_size=2, seed=SEED, vocab_size=config.model.vocab_size)
    assert data.valid is not None
    return model.eval(), data.valid


def plan_of(dataset: PatchedDataset, grid: Grid, micro_batch_size: int = 4) -> EvaluationPlan:
    return EvaluationPlan(dataset, micro_batch_size, None, grid, RandomStreams(SEED, grid.device))


def test_short_patches_have_no_brier_unless_rolled_out(short: tuple[Calm, PatchedDataset], grid: Grid) -> None:
    model, dataset = short
    scores = validate_calm(model, plan_of(dataset, grid), True, EvaluationConfig())
    assert scores.brier is None
    assert scores.patches == dataset.sequences_per_epoch * 15
    for places, expected in ((5, 5), (100, 13)):  # 15 predicted patches, the last two places are left out
        rolled = validate_calm(model, plan_of(dataset, grid), True, EvaluationConfig(rollout_positions=places))
        assert rolled.brier is not None and rolled.brier.patches == dataset.sequences_per_epoch * expected
        assert rolled.loss == scores.loss


def test_rolled_scores_do_not_depend_on_the_micro_batch(short: tuple[Calm, PatchedDataset], grid: Grid) -> None:
    model, dataset = short
    settings = EvaluationConfig(rollout_positions=4, brier_pairs=2)
    scores = [validate_calm(model, plan_of(dataset, grid, size), True, settings).brier for size in (1, 3, 1000)]
    assert scores[0] is not None and any(scores[0].brier)
    assert scores[0] == scores[1] == scores[2]
    one_pair = validate_calm(model, plan_of(dataset, grid), True, EvaluationConfig(rollout_positions=4)).brier
    assert one_pair is not None and one_pair.brier != scores[0].brier
