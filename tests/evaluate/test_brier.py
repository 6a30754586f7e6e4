"""BrierLM: golden figures, closed forms, the interval and what is refused."""

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from calm_megatron.config.errors import UserError
from calm_megatron.evaluate.brier import BrierAccumulator, brier_terms, brierlm


@pytest.mark.parametrize("model", ["energy", "diffusion", "flow"])
def test_brier_of_the_official_samples(golden: Callable[[str], Path], model: str) -> None:
    tensors = load_file(golden(model) / "io.safetensors")
    ids_BT, draws_2BPK = tensors["input_ids"], tensors["eval_predictions"]
    batch, tokens = ids_BT.shape
    targets_RK = ids_BT.view(batch, tokens // 4, 4)[:, 1:].reshape(-1, 4)
    sequence_R = torch.arange(batch).repeat_interleave(tokens // 4 - 1)
    total = BrierAccumulator(batch)
    total.add(brier_terms(draws_2BPK[0].view(-1, 4), draws_2BPK[1].view(-1, 4), targets_RK), sequence_R)
    score = total.score()
    expected = [float(tensors[f"brier{n}"]) for n in (1, 2, 3, 4)]
    assert score.brier == pytest.approx(expected, abs=1e-7)
    assert score.brierlm == pytest.approx(100 * float(np.prod(expected)) ** 0.25, rel=1e-7)
    assert score.patches == len(targets_RK)


def test_terms_of_written_out_cases() -> None:
    cases = [  # first, second, target, terms
        ([1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [1, 1, 1, 1]),
        ([1, 2, 9, 4], [1, 8, 3, 4], [1, 2, 3, 4], [1, 1, 0, 0]),
        ([7, 2, 3, 4], [7, 2, 3, 9], [1, 2, 3, 4], [-1, -1, -1, 0]),
        ([7, 2, 3, 4], [6, 2, 3, 4], [1, 2, 3, 4], [0, 0, 0, 0]),
        ([1, 2, 3, 4], [6, 2, 3, 4], [1, 2, 3, 9], [1, 1, 1, 0]),
    ]
    first, second, target, terms = (torch.tensor([case[i] for case in cases]) for i in range(4))
    assert torch.equal(brier_terms(first, second, target), terms.float())


def test_only_the_first_four_tokens_of_a_longer_patch_count() -> None:
    first, second, target = torch.randint(0, 2, (3, 200, 8), generator=torch.Generator().manual_seed(0))
    assert torch.equal(brier_terms(first, second, target), brier_terms(first[:, :4], second[:, :4], target[:, :4]))


def test_short_patches_are_refused() -> None:
    patch = torch.zeros(3, 2, dtype=torch.long)
    with pytest.raises(UserError, match="a patch holds only 2"):
        brier_terms(patch, patch, patch)


def _skewed_law(symbols: int, seed: int) -> Tensor:
    weights = torch.rand(symbols, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
    return weights / weights.sum()


@pytest.mark.parametrize("seed", range(10))
def test_every_order_is_unbiased(seed: int) -> None:
    """Tokens are independent with a known law for the sampler and another for the text: Brier-n has a closed form."""
    model_V, text_V = _skewed_law(5, seed), _skewed_law(5, seed + 100)
    patches = 100_000
    generator = torch.Generator().manual_seed(seed)
    draws = torch.multinomial(model_V, 2 * patches * 4, replacement=True, generator=generator).view(2, patches, 4)
    target = torch.multinomial(text_V, patches * 4, replacement=True, generator=generator).view(patches, 4)
    terms = brier_terms(draws[0], draws[1], target).double()
    for n in range(1, 5):
        truth = 2 * float((model_V @ text_V) ** n) - float((model_V @ model_V) ** n)
        standard_error = float(terms[:, n - 1].std()) / patches**0.5
        assert float(terms[:, n - 1].mean()) == pytest.approx(truth, abs=4 * standard_error)


def _independent_terms(sequences: int, patches: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    law_V = torch.tensor([0.9, 0.1])
    tokens = torch.multinomial(law_V, 3 * sequences * patches * 4, replacement=True, generator=generator)
    first, second, target = tokens.view(3, sequences * patches, 4)
    return brier_terms(first, second, target), torch.arange(sequences).repeat_interleave(patches)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    collision = 0.9**2 + 0.1**2
    truth = 100 * np.prod([2 * collision**n - collision**n for n in range(1, 5)]) ** 0.25
    generator = torch.Generator().manual_seed(1)
    covered, repetitions = 0, 500
    for seed in range(repetitions):
        total = BrierAccumulator(150)
        total.add(*_independent_terms(150, 10, generator))
        score = total.score(resamples=400, seed=seed)
        assert score.low is not None and score.high is not None
        covered += score.low <= truth <= score.high
    assert 0.93 <= covered / repetitions <= 0.97


def test_sequences_and_not_patches_are_resampled() -> None:
    """Copies of one sequence's patches add no knowledge: the interval must not shrink."""
    generator = torch.Generator().manual_seed(2)
    terms, sequence = _independent_terms(60, 1, generator)
    once, copied = BrierAccumulator(60), BrierAccumulator(60)
    once.add(terms, sequence)
    copied.add(terms.repeat(50, 1), sequence.repeat(50))
    assert once.score().low == pytest.approx(copied.score().low)
    assert copied.score().patches == 50 * once.score().patches


def test_shares_of_a_set_merge_to_the_whole_exactly() -> None:
    generator = torch.Generator().manual_seed(3)
    terms, sequence = _independent_terms(40, 7, generator)
    whole = BrierAccumulator(40)
    whole.add(terms, sequence)
    shares = [BrierAccumulator(40) for _ in range(3)]
    for place in random.Random(0).sample(range(len(terms)), len(terms)):
        shares[place % 3].add(terms[place : place + 1], sequence[place : place + 1])
    for share in shares[1:]:
        shares[0].merge(share)
    assert torch.equal(shares[0].state_SC, whole.state_SC)
    assert shares[0].score() == whole.score()


def test_more_confidence_gives_a_wider_interval_around_the_score() -> None:
    total = BrierAccumulator(50)
    total.add(*_independent_terms(50, 10, torch.Generator().manual_seed(4)))
    scores = [total.score(confidence) for confidence in (0.5, 0.95, 0.99)]
    for narrow, wide in itertools.pairwise(scores):
        assert wide.low < narrow.low < narrow.brierlm < narrow.high < wide.high  # type: ignore[operator]


def test_a_constant_wrong_model_scores_zero() -> None:
    """Four values of -1 have a positive product; that is no merit."""
    total = BrierAccumulator(5)
    same = torch.ones(20, 4, dtype=torch.long)
    total.add(brier_terms(same, same, same + 1), torch.arange(20) % 5)
    score = total.score()
    assert score.brier == (-1.0, -1.0, -1.0, -1.0)
    assert (score.brierlm, score.low, score.high) == (0.0, 0.0, 0.0)
    assert brierlm(np.array([1.0, 1.0, 1.0, 1.0])) == 100.0


def test_one_sequence_has_no_interval_and_none_has_no_score() -> None:
    total = BrierAccumulator(8)
    with pytest.raises(UserError, match="no patch was scored"):
        total.score()
    total.add(*_independent_terms(1, 10, torch.Generator().manual_seed(5)))
    score = total.score()
    assert (score.low, score.high, score.sequences, score.patches) == (None, None, 1, 10)
