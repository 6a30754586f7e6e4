"""The unigram baseline against its closed form."""

import numpy as np
import pytest
import torch

from calm_megatron.config.errors import UserError
from calm_megatron.evaluate.baselines import UnigramSampler, count_tokens
from calm_megatron.evaluate.brier import BrierAccumulator

COUNTS_V = np.array([50, 0, 30, 15, 5])


def _targets(patches: int) -> torch.Tensor:
    law_V = torch.from_numpy(COUNTS_V / COUNTS_V.sum())
    drawn = torch.multinomial(law_V, patches * 4, replacement=True, generator=torch.Generator().manual_seed(0))
    return drawn.view(patches, 4)


def test_counts() -> None:
    assert count_tokens([np.array([0, 2, 2]), np.array([[4], [0]])], 5).tolist() == [2, 0, 2, 0, 1]


def test_counting_refuses_foreign_ids_and_nothing() -> None:
    with pytest.raises(UserError, match="token id 5 does not fit a vocabulary of 5"):
        count_tokens([np.array([1, 5])], 5)
    with pytest.raises(UserError, match="no token to count"):
        count_tokens([np.array([], dtype=np.int64)], 5)


def test_the_score_is_the_closed_form_for_independent_tokens() -> None:
    sequences, patches = 200, 400
    sequence_R = torch.arange(sequences).repeat_interleave(patches)
    total = BrierAccumulator(sequences)
    terms_RO = UnigramSampler(COUNTS_V, seed=7).terms(_targets(sequences * patches), sequence_R)
    total.add(terms_RO, sequence_R)
    collision = float(((COUNTS_V / COUNTS_V.sum()) ** 2).sum())
    for n, value in enumerate(total.score().brier, start=1):
        standard_error = float(terms_RO[:, n - 1].std()) / (sequences * patches) ** 0.5
        assert value == pytest.approx(collision**n, abs=4 * standard_error)


def test_draws_depend_on_seed_and_sequence_only() -> None:
    sampler = UnigramSampler(COUNTS_V, seed=7)
    target_RK, sequence_R = _targets(60), torch.arange(6).repeat_interleave(10)
    whole = sampler.terms(target_RK, sequence_R)
    halves = [sampler.terms(target_RK[part], sequence_R[part]) for part in (slice(30, 60), slice(0, 30))]
    assert torch.equal(whole, torch.cat([halves[1], halves[0]]))
    assert not np.array_equal(sampler.draw(0, (2, 100)), sampler.draw(1, (2, 100)))
    assert not np.array_equal(sampler.draw(0, (2, 100)), UnigramSampler(COUNTS_V, seed=8).draw(0, (2, 100)))


def test_a_token_that_never_occurred_is_never_drawn() -> None:
    drawn = UnigramSampler(COUNTS_V, seed=0).draw(0, (50_000,))
    assert set(np.unique(drawn)) == {0, 2, 3, 4}
