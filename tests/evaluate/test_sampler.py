"""BrierLM of any sampler: closed forms, seeds, batches, interruptions."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from calm_megatron.config.errors import UserError
from calm_megatron.evaluate.brier import BrierScore
from calm_megatron.evaluate.sampler import Question, choose_questions, score_sampler

V = 4


class Chain:
    """A sampler whose next token depends on the last one: all its laws are known."""

    def __init__(self, transition_VV: NDArray[np.float64]) -> None:
        self.transition_VV = transition_VV / transition_VV.sum(axis=1, keepdims=True)
        self.calls: list[int] = []

    def draw(self, contexts: Sequence[Sequence[int]], keys: Sequence[int]) -> Tensor:
        """Each run from its key."""
        assert len({len(context) for context in contexts}) == 1
        self.calls.append(len(contexts))
        cumulative_VV = self.transition_VV.cumsum(axis=1)
        uniform_RO2 = np.stack([np.random.Generator(np.random.SFC64(seed)).random((4, 2)) for seed in keys])
        state_R2 = np.repeat([[context[-1]] for context in contexts], 2, axis=1)
        drawn = []
        for step in range(4):
            state_R2 = (uniform_RO2[:, step, :, None] >= cumulative_VV[state_R2]).sum(axis=-1).clip(max=V - 1)
            drawn.append(state_R2)
        return torch.from_numpy(np.stack(drawn, axis=-1)).transpose(0, 1)

    def law(self, last: int, n: int) -> NDArray[np.float64]:
        """Probability of every run of n tokens."""
        law = self.transition_VV[last]
        for _ in range(n - 1):
            law = law[..., None] * self.transition_VV
        return law


def chains() -> list[Chain]:
    dice = np.random.default_rng(0)
    return [
        Chain(np.ones((V, V))),
        Chain(np.eye(V)),
        Chain(np.eye(V) + 0.1),
        Chain(np.roll(np.eye(V), 1, axis=1) + 0.05),
        Chain(np.tile([8.0, 4.0, 2.0, 1.0], (V, 1))),
        *(Chain(dice.random((V, V)) ** power) for power in (1, 2, 4, 8, 16)),
    ]


def questions(count: int, seed: int = 0) -> list[Question]:
    """Random contexts and answers of which the first token often repeats the context's last."""
    dice = np.random.default_rng(seed)
    tokens = dice.integers(V, size=(count, 6))
    tokens[:, 2] = np.where(dice.random(count) < 0.5, tokens[:, 1], tokens[:, 2])
    return [Question(tuple(row[:2]), tuple(row[2:]), number // 10) for number, row in enumerate(tokens.tolist())]


@pytest.mark.parametrize("number", range(10))
def test_every_order_is_unbiased(number: int) -> None:
    chain, asked = chains()[number], questions(20_000)
    score = score_sampler(chain.draw, asked, seed=number, batch_size=5000)
    for n in range(1, 5):
        laws = [chain.law(last, n) for last in range(V)]
        collisions = [float((law**2).sum()) for law in laws]
        gold = np.array([laws[question.context[-1]][question.answer[:n]] for question in asked])
        same = np.array([collisions[question.context[-1]] for question in asked])
        # Given the question, the three indicators have these variances and, at most, this covariance.
        spread = 2 * gold * (1 - gold) + same * (1 - same) + 4 * np.sqrt(gold * (1 - gold) * same * (1 - same))
        error = float(np.sqrt(spread.sum())) / len(asked)
        assert score.brier[n - 1] == pytest.approx(float((2 * gold - same).mean()), abs=4 * error + 1e-12)


def test_the_score_follows_the_seed_and_not_the_batches() -> None:
    chain, asked = chains()[6], questions(500)
    scores = [score_sampler(chain.draw, asked, seed=1, batch_size=size) for size in (1, 7, 500)]
    assert scores[0] == scores[1] == scores[2]
    assert score_sampler(chain.draw, asked, seed=2) != scores[0]
    assert (scores[0].patches, scores[0].sequences) == (500, 50)


class Stopped(Exception):
    """As a machine that is switched off."""


def interrupted(chain: Chain, asked: list[Question], path: Path, after: int) -> None:
    calls = itertools.count()

    def draw(contexts: Sequence[Sequence[int]], keys: Sequence[int]) -> Tensor:
        if next(calls) == after:
            raise Stopped
        return chain.draw(contexts, keys)

    with pytest.raises(Stopped):
        score_sampler(draw, asked, seed=1, batch_size=5, resume_from=path, name="chain")


@pytest.mark.parametrize("after", [1, 21, 60])
def test_an_interruption_changes_nothing(tmp_path: Path, after: int) -> None:
    path, asked = tmp_path / "new" / "sums.partial", questions(400)
    whole = score_sampler(chains()[6].draw, asked, seed=1, batch_size=5)
    interrupted(chains()[6], asked, path, after)
    resumed = chains()[6]
    score: BrierScore = score_sampler(resumed.draw, asked, seed=1, batch_size=50, resume_from=path, name="chain")
    assert score == whole
    assert sum(resumed.calls) <= 400 - 5 * (after - (after - 1) % 20)
    assert not path.exists()


def test_sums_of_something_else_are_not_taken_up(tmp_path: Path) -> None:
    path, asked = tmp_path / "sums.partial", questions(400)
    interrupted(chains()[6], asked, path, 30)
    draw = chains()[6].draw
    with pytest.raises(UserError, match="of another model, text or setting"):
        score_sampler(draw, asked, seed=2, resume_from=path, name="chain")
    with pytest.raises(UserError, match="of another model, text or setting"):
        score_sampler(draw, asked, seed=1, resume_from=path, name="another")
    with pytest.raises(UserError, match="of another model, text or setting"):
        score_sampler(draw, asked[1:], seed=1, resume_from=path, name="chain")
    path.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        score_sampler(draw, asked, seed=1, resume_from=path, name="chain")


def test_questions_are_of_the_text() -> None:
    documents = [list(range(100, 145)), [7] * 3, list(range(20))]
    asked = choose_questions(documents, context_length=20, places=4, seed=0)
    pieces = [list(range(100, 120)), list(range(120, 140)), list(range(140, 145)), [7] * 3, list(range(20))]
    assert {question.piece for question in asked} <= {0, 1, 2, 4}
    for question in asked:
        text = [*question.context, *question.answer]
        assert text == pieces[question.piece][: len(text)] and len(question.answer) == 4 and question.context
    lengths = [len(question.context) for question in asked]
    assert lengths == sorted(lengths) and len(set(lengths)) == 4
    assert choose_questions(documents, 20, 4, seed=0) == asked != choose_questions(documents, 20, 4, seed=1)
    every = choose_questions([list(range(9))], context_length=9, places=99, seed=0)
    assert [len(question.context) for question in every] == [1, 2, 3, 4, 5]


def test_every_place_is_as_likely() -> None:
    lengths = [
        len(question.context)
        for seed in range(3000)
        for question in choose_questions([list(range(14))], context_length=14, places=3, seed=seed)
    ]
    share = np.bincount(lengths, minlength=11)[1:] / len(lengths)
    assert np.abs(share - 0.1).max() < 0.012


@pytest.mark.parametrize(("context_length", "places", "text"), [(4, 1, 9), (9, 0, 9), (9, 1, 3)])
def test_settings_without_a_question_are_refused(context_length: int, places: int, text: int) -> None:
    with pytest.raises(UserError):
        choose_questions([list(range(text))], context_length, places, seed=0)
