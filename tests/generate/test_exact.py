"""Exact temperature sampling: its law, its cost, its bound, and that rows keep to themselves."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from calm_megatron.generate.exact import Sampled, sample_exactly
from calm_megatron.generate.options import Exponent

LAW = [0.4, 0.25, 0.2, 0.1, 0.05]
QUANTILE = {3: 21.1, 4: 23.5}
"""Of chi-square with so many degrees of freedom: exceeded once in 10,000."""


class Dice:
    """A black box over words, one law for all rows, keyed by row and round; remembers what it was asked."""

    def __init__(self, law: Sequence[float], seed: int, missing: Sequence[int] = ()) -> None:
        self.cumulative, self.seed, self.missing = np.cumsum(law), seed, missing
        self.asked: list[tuple[int, int]] = []

    def _uniform(self, purpose: int, row: int, number: int, count: int) -> NDArray[np.float64]:
        return np.random.Generator(np.random.SFC64((self.seed, purpose, row, number))).random(count)

    def draw(self, rows: Sequence[int], number: int, count: int) -> list[list[tuple[str, int] | None]]:
        """Outcomes are tuples; those that are missing take no part."""
        self.asked.append((len(rows), count))
        drawn = []
        for row in rows:
            faces = np.searchsorted(self.cumulative, self._uniform(0, row, number, count), side="right").tolist()
            drawn.append([None if face in self.missing else ("word", face) for face in faces])
        return drawn

    def coins(self, row: int, number: int, count: int) -> list[float]:
        """The factory's numbers."""
        tosses: list[float] = self._uniform(1, row, number, count).tolist()
        return tosses


def sample(dice: Dice, rows: int, exponent: Exponent, max_draws: int = 100_000) -> list[Sampled[tuple[str, int]]]:
    return sample_exactly(dice.draw, dice.coins, rows, exponent, max_draws)


def tempered(law: Sequence[float], exponent: float) -> list[float]:
    powers = [p**exponent for p in law]
    return [p / sum(powers) for p in powers]


def chi_square(found: Sequence[Sampled[tuple[str, int]]], expected: Sequence[float]) -> float:
    counts = Counter(sampled.outcome for sampled in found)
    assert sum(counts["word", face] for face in range(len(expected))) == len(found)
    rows = len(found)
    return sum((counts["word", face] - rows * p) ** 2 / (rows * p) for face, p in enumerate(expected) if p)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.5, 0.4, 1 / 3])
def test_the_law_is_the_exact_one(temperature: float) -> None:
    exponent = Exponent.of(temperature)
    found = sample(Dice(LAW, seed=1), 20_000, exponent)
    assert chi_square(found, tempered(LAW, 1 / temperature)) < QUANTILE[4]


@pytest.mark.parametrize("temperature", [0.7, 0.4])
def test_the_law_among_those_that_take_part_is_exact(temperature: float) -> None:
    """As for a patch whose beginning is given: temperature and condition go together."""
    found = sample(Dice(LAW, seed=2, missing=[1]), 10_000, Exponent.of(temperature))
    conditional = [0.0 if face == 1 else p / 0.75 for face, p in enumerate(LAW)]
    assert chi_square(found, tempered(conditional, 1 / temperature)) < QUANTILE[3]


def test_a_wrong_law_would_be_seen() -> None:
    found = sample(Dice(LAW, seed=1), 20_000, Exponent.of(0.7))
    assert chi_square(found, tempered(LAW, 1 / 0.65)) > QUANTILE[4]


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.5, 0.4])
def test_the_cost_is_within_what_the_derivation_says(temperature: float) -> None:
    exponent = Exponent.of(temperature)
    found = sample(Dice(LAW, seed=3), 5_000, exponent)
    draws = [sampled.draws for sampled in found]
    chance = sum(p**exponent.value for p in LAW)
    factory = sum(p ** (exponent.value - 1) for p in LAW) if exponent.fraction else 0.0
    bound = (exponent.whole + factory) / chance
    error = 4 * np.std(draws) / math.sqrt(len(draws))
    assert exponent.whole <= np.mean(draws) <= bound + error
    if exponent.whole == 1:  # nothing stops an attempt early: the bound is the mean
        assert np.mean(draws) >= bound - error


def test_at_temperature_one_the_first_draw_is_taken() -> None:
    dice = Dice(LAW, seed=4)
    found = sample(dice, 100, Exponent())
    assert all(sampled.draws == 1 for sampled in found)
    assert dice.asked == [(100, 1)]


def test_the_bound_is_kept_and_told() -> None:
    flat = [1 / 1000] * 1000
    dice = Dice(flat, seed=5)
    found = sample(dice, 50, Exponent(3), max_draws=500)
    given_up = [sampled for sampled in found if sampled.outcome is None]
    assert len(given_up) > 40
    assert all(sampled.draws == 500 for sampled in given_up)
    assert sum(count for _, count in dice.asked) == 500
    never = sample(Dice([1.0], seed=5, missing=[0]), 1, Exponent(), max_draws=9)
    assert never == [Sampled(None, 9)]


def test_a_certain_outcome_needs_no_luck() -> None:
    found = sample(Dice([1.0], seed=6), 10, Exponent(2, 0.5))
    assert found == [Sampled(("word", 0), 3)] * 10


def test_rows_that_are_done_are_not_asked_again() -> None:
    dice = Dice(LAW, seed=7)
    sample(dice, 200, Exponent(4))
    rows = [rows for rows, _ in dice.asked]
    assert rows[0] == 200 and rows == sorted(rows, reverse=True) and len(set(rows)) == len(rows)


def test_a_row_does_not_depend_on_others() -> None:
    together = sample(Dice(LAW, seed=8), 30, Exponent(2, 0.5))
    assert sample(Dice(LAW, seed=8), 5, Exponent(2, 0.5)) == together[:5]
