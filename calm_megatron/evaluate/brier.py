"""BrierLM: a score for models that can only be sampled, with its confidence interval.

A model without probabilities has no perplexity. The Brier score of a distribution P at an outcome y,
`2 P(y) - sum_x P(x)^2`, is strictly proper, and two independent draws x1, x2 from P are enough to estimate it:

    E[ 1{x1 = y} + 1{x2 = y} - 1{x1 = x2} ]  =  2 P(y) - sum_x P(x)^2

since 1{x = y} has the expectation P(y), and two draws collide with probability sum_x P(x)^2. Brier-n applies this to
the next n tokens taken as one outcome, and BrierLM is the geometric mean of Brier-1 to Brier-4, times 100 (arXiv
2510.27688, the part on evaluation by BrierLM).

Each Brier-n is unbiased, for any number of patches. Their geometric mean is a non-linear function of four estimates,
hence only consistent: its bias vanishes as the set grows, like the square of its standard error. That is why terms are
averaged over the whole set first and the root is taken last, never batch by batch.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calm_megatron.config.errors import UserError

ORDERS: Final = 4
"""Longest run of tokens scored as one outcome."""
_WEIGHTS_AT_ONCE: Final = 4_000_000
"""Bootstrap weights in memory at a time (32 MB)."""


def brier_terms(first_RK: Tensor, second_RK: Tensor, target_RK: Tensor, orders: int = ORDERS) -> Tensor:
    """Return the unbiased Brier-n term of each patch, n = 1..orders.

    Args:
        first_RK: tokens of one draw for each of R patches.
        second_RK: tokens of another, independent draw.
        target_RK: tokens that the text has there. Tokens behind the first `orders` of a patch are not scored.
        orders: O, the longest run of tokens.

    Returns:
        terms_RO in float32, each one of -1, 0, 1, 2 (exact).

    Raises:
        UserError: the patch is shorter than `orders`.
    """
    if not first_RK.shape == second_RK.shape == target_RK.shape or target_RK.dim() != 2:
        shapes = [tuple(tokens.shape) for tokens in (first_RK, second_RK, target_RK)]
        raise ValueError(f"the two draws and the target must be of one shape (R, K), got {shapes}")
    if target_RK.shape[1] < orders:
        raise UserError(
            f"BrierLM scores runs of {orders} tokens, but a patch holds only {target_RK.shape[1]}",
            "patch_size of the model",
            f"evaluate a model with a patch size of {orders} or more",
        )

    first_RO, second_RO, target_RO = (tokens[:, :orders] for tokens in (first_RK, second_RK, target_RK))
    return equal_so_far(first_RO, target_RO) + equal_so_far(second_RO, target_RO) - equal_so_far(first_RO, second_RO)


def equal_so_far(left: Tensor, right: Tensor) -> Tensor:
    """1 where two runs of tokens, along the last axis, agree up to here, else 0; float32."""
    return (left == right).float().cumprod(dim=-1)


def brierlm(brier_O: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the geometric mean over the last axis, times 100, where a negative Brier-n counts as zero.

    The official code clips the product of the four instead. A model that always gives the same wrong answer then has
    four values of -1, a product of +1 and thus the perfect score of 100; an untrained head, which is constant, is such
    a model. Both rules agree whenever no value, or an odd number of them, is negative.
    """
    clipped_O = np.maximum(brier_O, 0.0)
    score: NDArray[np.float64] = 100.0 * np.prod(clipped_O, axis=-1) ** (1.0 / brier_O.shape[-1])
    return score


@dataclass(frozen=True, kw_only=True)
class BrierScore:
    """BrierLM of an evaluation set."""

    brier: tuple[float, ...]
    """Brier-n for n = 1, 2, ...; from -1 to 1, more is better, unbiased."""
    brierlm: float
    """Geometric mean of them, from 0 to 100."""
    low: float | None
    """Lower end of the interval of `brierlm`; none when a single sequence leaves it unknown."""
    high: float | None
    """Upper end of the interval."""
    confidence: float
    """Level of the interval, say 0.95."""
    patches: int
    sequences: int

    def as_dict(self) -> dict[str, object]:
        """The score as plain values for logs and files."""
        return {
            "brierlm": self.brierlm,
            "brierlm_low": self.low,
            "brierlm_high": self.high,
            "confidence": self.confidence,
            "brier": list(self.brier),
        }


class BrierAccumulator:
    """Sums Brier terms by the sequence that they come from.

    `state_SC` is the whole state: for each of S sequences the sums of the O terms and the number of patches. With one
    pair of samples a patch, all numbers in it are whole and small, and float64 adds them exactly: ranks may share one
    set in any way and sum their states (an all-reduce), and the score does not depend on how. Sequences that were
    never added do not count.

    Args:
        num_sequences: S, sequences of the whole evaluation set, over all ranks.
        orders: O, the longest run of tokens.
        device: where the state lives.
    """

    def __init__(self, num_sequences: int, orders: int = ORDERS, device: torch.device | str = "cpu") -> None:
        self.orders = orders
        self.state_SC = torch.zeros(num_sequences, orders + 1, dtype=torch.float64, device=device)

    def add(self, terms_RO: Tensor, sequence_R: Tensor) -> None:
        """Add the terms of R patches, each with the index (0..S-1) of its sequence."""
        ones_R1 = torch.ones_like(terms_RO[:, :1])
        rows_RC = torch.cat([terms_RO, ones_R1], dim=1).to(self.state_SC)
        self.state_SC.index_add_(0, sequence_R.to(self.state_SC.device), rows_RC)

    def merge(self, other: "BrierAccumulator") -> None:
        """Add what another accumulator of the same set has seen."""
        self.state_SC += other.state_SC.to(self.state_SC.device)

    def score(self, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> BrierScore:
        """Score all that was added.

        The interval says how much the score would move if other text of the same kind, and other draws of the model,
        had been scored. It is the percentile bootstrap over sequences: sequences, not patches, are drawn with
        replacement, since patches of one text are not independent. It does not cover what another training run would
        change.

        Args:
            confidence: level of the interval.
            resamples: bootstrap repetitions.
            seed: seed of the bootstrap; equal states give equal intervals.

        Raises:
            UserError: nothing was added.
        """
        state_SC = self.state_SC.cpu().numpy()
        state_SC = state_SC[state_SC[:, -1] > 0]
        if not len(state_SC):
            raise UserError("no patch was scored", "evaluation set", "give a data set or a split with more text")
        totals_C = state_SC.sum(axis=0)
        brier_O = totals_C[:-1] / totals_C[-1]
        low, high = _bootstrap_interval(state_SC, confidence, resamples, seed)
        return BrierScore(
            brier=tuple(brier_O.tolist()),
            brierlm=float(brierlm(brier_O)),
            low=low,
            high=high,
            confidence=confidence,
            patches=int(totals_C[-1]),
            sequences=len(state_SC),
        )


def _bootstrap_interval(
    state_SC: NDArray[np.float64], confidence: float, resamples: int, seed: int
) -> tuple[float | None, float | None]:
    """Percentile interval of BrierLM; drawing S sequences with replacement is a multinomial weight for each."""
    sequences = len(state_SC)
    if sequences < 2:
        return None, None
    random = np.random.default_rng(seed)
    equal_S = np.full(sequences, 1.0 / sequences)
    at_once = max(1, _WEIGHTS_AT_ONCE // sequences)
    scores: list[NDArray[np.float64]] = []
    for start in range(0, resamples, at_once):
        weights_WS = random.multinomial(sequences, equal_S, size=min(at_once, resamples - start))
        totals_WC = weights_WS.astype(np.float64) @ state_SC
        scores.append(brierlm(totals_WC[:, :-1] / totals_WC[:, -1:]))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(np.concatenate(scores), [tail, 1.0 - tail])
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("the Brier terms hold values that are not finite")
    return float(low), float(high)
