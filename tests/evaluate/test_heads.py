"""Validation of diffusion and flow matching against plain counting, patch by patch."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from calm_megatron.checkpoint.load import saved_config
from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import (
    AutoencoderConfig,
    CalmConfig,
    DiffusionHeadConfig,
    EvaluationConfig,
    FlowHeadConfig,
    HeadConfig,
)
from calm_megatron.data.data_splits import DataSplits
from calm_megatron.evaluate.validation import CalmScores, EvaluationPlan, validate_calm
from calm_megatron.model.autoencoder import Autoencoder, FrozenAutoencoder
from calm_megatron.model.calm import Calm
from calm_megatron.model.initialise import initialise
from calm_megatron.model.noise import KeyedNoise, NoiseOfRows
from calm_megatron.parallel.grid import Grid
from calm_megatron.parallel.random_streams import RandomStreams
from calm_megatron.train.evaluation import EvaluationRequest, evaluate_run

SEED, K, P = 5, 4, 8
HEADS = {
    "diffusion": DiffusionHeadConfig(num_layers=1, num_samples=3, num_sampling_steps=4),
    "flow": FlowHeadConfig(num_layers=1, num_samples=3, num_sampling_steps=3),
}
Validate = Callable[..., CalmScores]


@pytest.fixture(params=HEADS)
def head(request: pytest.FixtureRequest) -> HeadConfig:
    """One of the heads."""
    return HEADS[request.param]


@pytest.fixture
def model(runs: Path, grid: Grid, head: HeadConfig) -> Calm:
    """A CALM with random weights, whose autoencoder is random as well."""
    config = saved_config(runs / "calm").model
    assert isinstance(config, CalmConfig)
    sizes = {"vocab_size": config.vocab_size, "latent_size": 8, "hidden_size": 16, "ffn_hidden_size": 16}
    autoencoder = Autoencoder(AutoencoderConfig(**sizes))
    initialise(autoencoder, seed=1, std=0.3)
    calm = Calm(dataclasses.replace(config, head=head), FrozenAutoencoder(autoencoder))
    initialise(calm, seed=1, std=0.3)
    return calm.eval()


@pytest.fixture
def data(runs: Path) -> DataSplits:
    """The run's data."""
    config = saved_config(runs / "calm")
    return DataSplits.open(config.data, patch_size=K, seed=SEED, vocab_size=config.model.vocab_size)


@pytest.fixture
def validate(model: Calm, data: DataSplits, grid: Grid) -> Validate:
    """Scores the model on six sequences."""

    def score(micro_batch_size: int = 4, **settings: int) -> CalmScores:
        assert data.valid is not None
        plan = EvaluationPlan(data.valid, micro_batch_size, 6, grid, RandomStreams(SEED, grid.device))
        return validate_calm(model, plan, True, EvaluationConfig(**settings))

    return score


@torch.no_grad()
def test_scores_are_those_of_plain_counting(model: Calm, data: DataSplits, validate: Validate) -> None:
    assert data.valid is not None
    losses, parts, brier = [], [], []
    for number in range(6):
        sequence = data.valid.sequence(number)
        ids_1T, documents_1P = torch.from_numpy(sequence.ids_T)[None], torch.from_numpy(sequence.documents_P)[None]
        hidden_PH = model.hidden_states(ids_1T, documents_1P)[0]
        noise = KeyedNoise(RandomStreams(SEED, torch.device("cpu")), "evaluation", 0, [number], P - 1)
        for patch in range(1, P):
            target_K, hidden_1H = ids_1T[0, patch * K : (patch + 1) * K], hidden_PH[patch - 1][None]
            own = NoiseOfRows(noise, torch.tensor([patch - 1]))
            terms = model.head.loss(hidden_1H, lambda target_K=target_K: model.autoencoder.encode(target_K[None]), own)
            losses.append(float(terms.loss_R))
            parts.append([float(part) for part in terms.parts.values()])
            first, second = model.autoencoder.tokens(model.head.sample(hidden_1H, own, 2))[:, 0].tolist()
            signs, pairs = (1, 1, -1), ((first, target_K.tolist()), (second, target_K.tolist()), (first, second))
            brier.append(
                [sum(s * (a[:n] == b[:n]) for s, (a, b) in zip(signs, pairs, strict=True)) for n in range(1, 5)]
            )
    scores, rows = validate(), len(losses)

    def means(table: list[list[float]]) -> list[float]:
        return [sum(column) / rows for column in zip(*table, strict=True)]

    assert scores.loss == pytest.approx(sum(losses) / rows, rel=1e-4)
    assert list(scores.parts.values()) == pytest.approx(means(parts), rel=1e-4)
    assert tuple(scores.parts) == type(model.head).part_names
    assert scores.brier is not None
    assert any(any(row) for row in brier)
    assert scores.brier.brier == pytest.approx(means(brier), abs=1e-12)
    assert scores.patches == rows


def test_scores_do_not_depend_on_the_micro_batch(validate: Validate) -> None:
    one, all_ = validate(1), validate(6)
    assert one.brier == all_.brier
    assert one.loss == pytest.approx(all_.loss, rel=1e-5)


def test_steps_and_pairs_are_settings(model: Calm, validate: Validate) -> None:
    usual, scores = validate(), validate(sampling_steps=9)
    own = model.config.head.num_sampling_steps  # type: ignore[union-attr]
    assert validate(sampling_steps=own) == usual
    assert scores.loss == usual.loss and scores.brier != usual.brier
    # More samples than the loss has are no matter: they are drawn for themselves.
    assert validate(brier_pairs=4).brier != usual.brier


def test_steps_are_refused_where_there_is_one(runs: Path) -> None:
    with pytest.raises(UserError, match=r"evaluation\.sampling_steps has no effect with an energy head"):
        evaluate_run(EvaluationRequest(model=runs / "calm", sampling_steps=3))
    with pytest.raises(UserError, match="sampling_steps is 0"):
        EvaluationRequest(model=runs / "calm", sampling_steps=0)
