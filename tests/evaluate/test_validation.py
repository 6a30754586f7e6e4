"""Validation scores against plain counting, sequence by sequence, and their independence of how the work is cut."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from calm_megatron.checkpoint.load import load_autoencoder, load_calm, saved_config
from calm_megatron.config.schema import AutoencoderConfig, EvaluationConfig
from calm_megatron.data.loader import DataSplits
from calm_megatron.data.patching import PatchedDataset
from calm_megatron.evaluate.brier import brierlm
from calm_megatron.evaluate.validation import (
    AutoencoderScores,
    CalmScores,
    EvaluationPlan,
    validate_autoencoder,
    validate_calm,
)
from calm_megatron.model.autoencoder import Autoencoder
from calm_megatron.model.calm import Calm
from calm_megatron.parallel.grid import Grid
from calm_megatron.parallel.random_streams import RandomStreams

SEED, K, P = 5, 4, 8
SIGMAS = (0.0, 0.5, 5.0)
Plan = Callable[..., EvaluationPlan]


@pytest.fixture(scope="module")
def autoencoder(runs: Path) -> Autoencoder:
    """The run's autoencoder; its decoder is made to know some tokens, so that accuracies differ from zero."""
    return load_autoencoder(runs / "ae")


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
    """Makes plans over the validation set."""

    def build(micro_batch_size: int = 4, sequences: int | None = None) -> EvaluationPlan:
        return EvaluationPlan(dataset, micro_batch_size, sequences, grid, RandomStreams(SEED, grid.device))

    return build


def hits(model: Autoencoder, latent_RZ: Tensor, ids_RK: Tensor) -> int:
    return sum(
        int(row[token] == row.max())
        for patch, ids in zip(model.logits(latent_RZ), ids_RK, strict=True)
        for row, token in zip(patch, ids, strict=True)
    )


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
        assert getattr(ours, field.name) == pytest.approx(getattr(expected, field.name), rel=1e-5), field.name


@pytest.mark.parametrize("sequences", [None, 5])
def test_autoencoder_scores_are_those_of_plain_counting(
    autoencoder: Autoencoder, dataset: PatchedDataset, plan: Plan, sequences: int | None
) -> None:
    expected = counted_autoencoder(autoencoder, dataset, sequences or dataset.sequences_per_epoch)
    assert expected.token_accuracy_mean > expected.token_accuracy_sample > 0.0
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


@torch.no_grad()
def counted_calm(model: Calm, dataset: PatchedDataset, sequences: int, masked: bool) -> CalmScores:
    """The scores by loops over sequences, patches and pairs of points; `brier` alone is filled in of its scores."""
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
            target = ids_1T[0, patch * K : (patch + 1) * K]
            mean_1Z, log_std_1Z = model.autoencoder.encode(target[None])
            samples_NZ = model.head.sample(hidden_PH[patch - 1][None], uniform_PNn[patch - 1][:, None])[:, 0].double()
            targets_MZ = (mean_1Z + normal_PMZ[patch - 1] * log_std_1Z.exp()).double()
            spreads.append(float(torch.cdist(samples_NZ, samples_NZ).sum()) / (N * (N - 1)))
            distances.append(float(torch.cdist(samples_NZ, targets_MZ).mean()))
            first, second = model.autoencoder.tokens(samples_NZ[:2].float()).tolist()
            parts = (equal_so_far(first, target.tolist()), equal_so_far(second, target.tolist()))
            brier.append([a + b - c for a, b, c in zip(*parts, equal_so_far(first, second), strict=True)])
    spread, distance = (sum(values) / len(values) for values in (spreads, distances))
    terms_O = torch.tensor(brier).double().mean(dim=0)
    score = validate_brier(terms_O.tolist())
    return CalmScores(2 * distance - spread, spread, distance, len(spreads), score)


def validate_brier(brier: list[float]):  # noqa: ANN201 - a stand-in of the right shape for the comparison below
    import numpy as np

    from calm_megatron.evaluate.brier import BrierScore

    return BrierScore(
        brier=tuple(brier),
        brierlm=float(brierlm(np.array(brier))),
        low=None,
        high=None,
        confidence=0.95,
        patches=0,
        sequences=0,
    )
