r"""Temperature for a model that can be sampled but has no logits: the exact law, for any T in (0, 1].

Wanted is a draw from P(x)^s / Z with s = 1/T = n + a, where n = floor(s) and 0 <= a < 1; given are draws from P alone.
It is done by rejection in two stages (arXiv 2510.27688, likelihood-free temperature sampling):

1. Draw n times. They all give the same x with probability P(x)^n. If they do not, start again with n fresh draws.
2. If a > 0, accept x with probability P(x)^a, and start again otherwise. P(x) is unknown, but a coin that shows heads
   with probability p = P(x) is at hand: draw once more and look whether it is x. To make a coin of probability p^a out
   of coins of probability p is a *Bernoulli factory* (Keane and O'Brien 1994). This one is Mendo's (2019), for power
   series with coefficients of one sign. With q = 1 - p the binomial series is

       p^a = (1 - q)^a = 1 - sum_{i >= 1} c_i q^i,    c_1 = a,   c_{i+1} = c_i (i - a) / (i + 1),

   where all c_i are positive and add up to 1. Toss until heads; at the i-th tails stop with probability
   c_i / (1 - c_1 - ... - c_{i-1}), which is a / i, and reject. So the factory rejects at the i-th tails with
   probability q^i c_i, and thus accepts with probability 1 - sum c_i q^i = p^a.

An attempt ends with x accepted with probability P(x)^(n + a). As every attempt is alike and independent, the accepted
one follows P(x)^s / Z, where Z = sum_x P(x)^s is the chance that an attempt succeeds. An attempt takes at most n draws,
and the factory p^(a - 1) on average, so the mean number of draws is below

    (n + sum_x P(x)^(n + a - 1)) / Z,

which no bound holds for all P: flat distributions and low temperatures are dear. Hence `max_draws`, beyond which a row
gives up and says so. (Leaving rows out so is no longer exact; the law of those that are left is biased towards the
outcomes that are found soon.)

The n draws of an attempt stop at the first that differs, which is no part of the next attempt: with it as the next
candidate one would look for runs of equal draws, whose law is another one.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from calm_megatron.generate.options import Exponent

Outcome = TypeVar("Outcome", bound=Hashable)

Draw = Callable[[Sequence[int], int, int], Sequence[Sequence[Outcome | None]]]
"""The black box: (rows, round, count) gives `count` independent draws for each of these rows, equal ones by ==. None
is a draw that takes no part: what is sampled is then the law among the others."""
Coins = Callable[[int, int, int], Sequence[float]]
"""(row, round, count) gives `count` uniform numbers in [0, 1) of that row, independent of its draws."""

LARGEST_ROUND: Final = 256
"""Draws of a row at once, at most. Rounds begin small, as many a row is done with its first draws, and double."""


@dataclass(frozen=True)
class Sampled(Generic[Outcome]):
    """What became of a row."""

    outcome: Outcome | None
    """None if `max_draws` were not enough."""
    draws: int
    """Draws that were looked at."""


@dataclass
class _Attempts(Generic[Outcome]):
    """The attempts of a row, draw by draw."""

    exponent: Exponent
    candidate: Outcome | None = None
    agreed: int = 0
    """Draws of this attempt that have given the candidate."""
    tails: int = 0
    """Draws of the factory that have given something else."""
    draws: int = 0

    def take(self, outcome: Outcome | None, coin: float) -> bool:
        """Look at the next draw; whether the candidate is accepted now."""
        self.draws += 1
        if outcome is None:
            return False
        if self.agreed < self.exponent.whole:
            if self.agreed and outcome != self.candidate:
                self.agreed = 0
                return False
            self.candidate, self.agreed, self.tails = outcome, self.agreed + 1, 0
            return self.agreed == self.exponent.whole and not self.exponent.fraction
        if outcome == self.candidate:
            return True
        self.tails += 1
        if coin < self.exponent.fraction / self.tails:
            self.agreed = 0
        return False


def sample_exactly(
    draw: Draw[Outcome], coins: Coins, rows: int, exponent: Exponent, max_draws: int
) -> list[Sampled[Outcome]]:
    """Draw one outcome a row from P(x)^s / Z, P being the row's own law.

    Rows that are done are asked for no further draws. How large a round is depends on its number alone, so that a row
    sees the same draws whatever becomes of others.

    Args:
        draw: the black box.
        coins: the factory's own randomness; not asked for when s is whole.
        rows: how many.
        exponent: s = 1/T.
        max_draws: looked at for each row before giving up.
    """
    attempts: list[_Attempts[Outcome]] = [_Attempts(exponent) for _ in range(rows)]
    done: dict[int, Sampled[Outcome]] = {}
    seen, number = 0, 0
    count = exponent.whole + bool(exponent.fraction)
    while seen < max_draws and len(done) < rows:
        count = min(count, max_draws - seen)
        pending = [row for row in range(rows) if row not in done]
        for row, outcomes in zip(pending, draw(pending, number, count), strict=True):
            tosses = coins(row, number, count) if exponent.fraction else [1.0] * count
            walk = attempts[row]
            if any(walk.take(outcome, toss) for outcome, toss in zip(outcomes, tosses, strict=True)):
                done[row] = Sampled(walk.candidate, walk.draws)
        seen, number, count = seen + count, number + 1, max(count, min(2 * count, LARGEST_ROUND))
    return [done.get(row) or Sampled(None, attempts[row].draws) for row in range(rows)]
