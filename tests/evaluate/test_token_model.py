"""Scores of a small trained baseline: from samples, from probabilities, and by hand."""

from pathlib import Path

import pytest
import torch

from calm_megatron.checkpoint.load import load_ar_baseline, saved_config
from calm_megatron.config.schema import EvaluationConfig
from calm_megatron.data.batch import read_batch
from calm_megatron.data.data_splits import DataSplits
from calm_megatron.data.patching import PatchedDataset
from calm_megatron.evaluate import token_model
from calm_megatron.evaluate.token_model import ArScores, validate_ar
from calm_megatron.evaluate.validation import EvaluationPlan
from calm_megatron.model.ar_baseline import ArBaseline
from calm_megatron.parallel.grid import Grid
from calm_megatron.parallel.random_streams import RandomStreams

SEED = 5


@pytest.fixture(scope="module")
def data(runs: Path) -> DataSplits:
    """The run's data, token by token."""
    config = saved_config(runs / "ar")
    return DataSplits.open(config.data, patch_size=1, seed=SEED, vocab_size=config.model.vocab_size)


@pytest.fixture(scope="module")
def baseline(runs: Path, data: DataSplits, grid: Grid) -> ArBaseline:
    """The run's model after some training."""
    model = load_ar_baseline(runs / "ar")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(60):
        batch = read_batch(data.train, range(8 * step, 8 * step + 8))
        optimizer.zero_grad()
        terms = model(batch.ids_BT, batch.documents_BP)
        terms.loss.backward()
        optimizer.step()
    return model.eval()


def scores(model: ArBaseline, data: DataSplits, grid: Grid, places: int, micro_batch_size: int = 4) -> ArScores:
    dataset = data.valid
    assert isinstance(dataset, PatchedDataset)
    plan = EvaluationPlan(dataset, micro_batch_size, None, grid, RandomStreams(SEED, grid.device))
    return validate_ar(model, plan, True, EvaluationConfig(rollout_positions=places))


def test_samples_agree_with_probabilities(baseline: ArBaseline, data: DataSplits, grid: Grid) -> None:
    found = scores(baseline, data, grid, places=1000)
    sampled, known = found.brier, found.brier_known
    assert sampled is not None and known is not None
    assert sampled.low is not None and sampled.high is not None and known.low is not None and known.high is not None
    assert found.loss < 4.5 and min(known.brier) > 0.005
    assert sampled.low < known.brierlm < sampled.high
    assert known.high - known.low < sampled.high - sampled.low
    rows = sampled.patches
    for ours, truth in zip(sampled.brier, known.brier, strict=True):
        assert ours == pytest.approx(truth, abs=4 * (1.5 / rows) ** 0.5)


def test_brier_one_is_known_in_full(baseline: ArBaseline, data: DataSplits, grid: Grid) -> None:
    """2 p(y) - sum p^2 over the same places, token by token."""
    known = scores(baseline, data, grid, places=1000).brier_known
    assert known is not None and data.valid is not None
    terms = []
    for number in range(data.valid.sequences_per_epoch):
        batch = read_batch(data.valid, [number])
        with torch.no_grad():
            hidden_TH = baseline.hidden_states(batch.ids_BT, batch.documents_BP)[0]
            share_TV = baseline.logits(hidden_TH).double().softmax(dim=-1)
        for place in range(len(share_TV) - 5):
            share_V = share_TV[place]
            terms.append(2 * share_V[batch.ids_BT[0, place + 1]] - share_V.square().sum())
    assert known.patches == len(terms)
    assert known.brier[0] == pytest.approx(float(torch.stack(terms).mean()), rel=1e-5)


def test_scores_do_not_depend_on_how_the_work_is_cut(
    baseline: ArBaseline, data: DataSplits, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scores(baseline, data, grid, places=6)
    monkeypatch.setattr(token_model, "PROBABILITIES_AT_ONCE", 7 * baseline.config.vocab_size)
    parts = scores(baseline, data, grid, places=6, micro_batch_size=3)
    assert whole.brier == parts.brier
    assert whole.brier_known is not None and parts.brier_known is not None
    assert parts.brier_known.brier == pytest.approx(whole.brier_known.brier, rel=1e-5)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)


def test_without_places_there_is_no_brier(baseline: ArBaseline, data: DataSplits, grid: Grid) -> None:
    found = scores(baseline, data, grid, places=0)
    assert (found.brier, found.brier_known) == (None, None)
    assert found.loss == scores(baseline, data, grid, places=6).loss
