"""What a sampler without any context scores: the floor that a language model has to leave behind."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calm_megatron.config.errors import UserError
from calm_megatron.data.sequences import Sequences
from calm_megatron.evaluate.brier import ORDERS, BrierAccumulator, BrierScore, brier_terms
from calm_megatron.evaluate.validation import EvaluationPlan

COUNTED_TOKENS = 10_000_000
"""Training tokens from which the unigram sampler learns its frequencies, at most."""


def count_tokens(sequences: Iterable[NDArray[np.integer]], vocab_size: int) -> NDArray[np.int64]:
    """Return counts_V, how often each token id occurs in the given arrays of ids.

    Raises:
        UserError: an id lies outside of the vocabulary, or there is no token at all.
    """
    counts_V = np.zeros(vocab_size, dtype=np.int64)
    for ids in sequences:
        flat = np.asarray(ids).reshape(-1)
        if flat.size and not 0 <= int(flat.min()) <= int(flat.max()) < vocab_size:
            raise UserError(
                f"token id {int(flat.max())} does not fit a vocabulary of {vocab_size}",
                "data of the unigram baseline",
                "use the data set and the model of one tokenizer",
            )
        counts_V += np.bincount(flat, minlength=vocab_size)
    if not counts_V.any():
        raise UserError("there is no token to count", "data of the unigram baseline", "give a data set with text")
    return counts_V


class UnigramSampler:
    """Draws every token independently of all others, in proportion to its count.

    The draws of a sequence depend on the seed and on its index alone, so a set may be walked in any order and by any
    number of ranks.

    Args:
        counts_V: how often each token occurs in the training data, see `count_tokens`.
        seed: root of the draws.
    """

    def __init__(self, counts_V: NDArray[np.int64], seed: int = 0) -> None:
        self._cumulative_V = np.cumsum(counts_V, dtype=np.int64)
        self._seed = seed

    def draw(self, sequence: int, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Return an array of token ids for the sequence of this index."""
        random = np.random.Generator(np.random.SFC64(np.random.SeedSequence((self._seed, sequence))))
        tickets = random.integers(self._cumulative_V[-1], size=shape)
        return np.searchsorted(self._cumulative_V, tickets, side="right").astype(np.int64)

    def terms(self, target_RK: Tensor, sequence_R: Tensor, orders: int = ORDERS) -> Tensor:
        """Return the Brier terms of this sampler, two draws a patch, for `BrierAccumulator.add`.

        Args:
            target_RK: tokens of R patches, all the scored ones of each sequence in it.
            sequence_R: index of each patch's sequence in the evaluation set.
            orders: longest run of tokens scored.

        Returns:
            terms_RO, see `brier_terms`.
        """
        patch_size = target_RK.shape[1]
        draws_2RK = torch.empty(2, *target_RK.shape, dtype=torch.int64)
        owners_R = sequence_R.cpu()
        for sequence in sorted(set(owners_R.tolist())):
            mine_R = owners_R == sequence
            draws_2RK[:, mine_R] = torch.from_numpy(self.draw(sequence, (2, int(mine_R.sum()), patch_size)))
        first_RK, second_RK = draws_2RK.to(target_RK.device)
        return brier_terms(first_RK, second_RK, target_RK, orders)


def training_counts(dataset: Sequences, vocab_size: int) -> NDArray[np.int64]:
    """Return counts_V of a training set as models see it, end-of-document and pad tokens included.

    Of a large set the first sequences are taken, up to `COUNTED_TOKENS`; as training sets are shuffled, that is a
    sample.
    """
    count = min(dataset.sequences_per_epoch, max(1, COUNTED_TOKENS // dataset.seq_length))
    return count_tokens((dataset.sequence(index).ids_T for index in range(count)), vocab_size)


def validate_unigram(
    counts_V: NDArray[np.int64], plan: EvaluationPlan, patch_size: int, confidence: float
) -> BrierScore:
    """Score a unigram sampler on the patches that `validate_calm` scores a model on."""
    sampler = UnigramSampler(counts_V, plan.streams.seed)
    total = BrierAccumulator(plan.dataset.sequences_per_epoch, device=plan.grid.device)
    for batch in plan.batches():
        target_RK = batch.ids_BT[:, patch_size:].reshape(-1, patch_size)
        sequence_R = batch.sequence_ids_B.repeat_interleave(batch.ids_BT.shape[1] // patch_size - 1)
        if len(target_RK):
            total.add(sampler.terms(target_RK, sequence_R), sequence_R)
    plan.total(total.state_SC)
    return total.score(confidence)
