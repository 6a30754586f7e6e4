"""The batch approximation of temperature sampling: golden pools, exact laws, fallback and bad temperatures."""

import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from calm_megatron.config.errors import UserError
from calm_megatron.generate.options import Exponent
from calm_megatron.generate.temperature import (
    combinations,
    select,
    select_index,
    temperature_weights,
)


def reference_candidates(draws: list[tuple[int, ...]], order: int) -> dict[tuple[int, ...], int]:
    """The plain, slow way, with exact whole numbers; outcomes in the order of first appearance."""
    counts = Counter(draws)
    order = min(order, max(counts.values()))
    return {outcome: math.comb(count, order) for outcome, count in counts.items() if count >= order}


def candidates(pool_NK: Tensor, weights_N: Tensor) -> dict[tuple[int, ...], float]:
    places = weights_N.nonzero().squeeze(1).tolist()
    return {tuple(pool_NK[place].tolist()): float(weights_N[place]) for place in places}


@pytest.mark.parametrize("model", ["energy", "energy_k2"])
def test_the_official_pool_gives_the_official_pick(golden: Callable[[str], Path], model: str) -> None:
    tensors = load_file(golden(model) / "io.safetensors")
    pool_BNK = tensors["temp_pool_tokens"]
    weights_BN = temperature_weights(pool_BNK, Exponent(2))
    official, ours = random.Random(1234), random.Random(1234)
    for pool_NK, weights_N, expected_K in zip(pool_BNK, weights_BN, tensors["temp_selected_seed1234"], strict=True):
        offered = candidates(pool_NK, weights_N)
        assert list(offered.items()) == list(
            reference_candidates([tuple(draw) for draw in pool_NK.tolist()], 2).items()
        )
        assert official.choices(list(offered), weights=list(offered.values()))[0] == tuple(expected_K.tolist())
        uniform = torch.tensor([ours.random()], dtype=torch.float64)
        assert torch.equal(select(pool_NK[None], Exponent(2), uniform)[0], expected_K)


@pytest.mark.parametrize("order", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("outcomes", [1, 3, 40])
def test_weights_are_the_exact_ones(order: int, outcomes: int) -> None:
    generator = torch.Generator().manual_seed(order)
    rows = torch.randint(0, outcomes, (6, 200, 1), generator=generator)
    pool_BNK = torch.cat([rows % 3, rows // 3, 128_256 - rows, rows * 0], dim=-1)
    weights_BN = temperature_weights(pool_BNK, Exponent(order))
    for pool_NK, weights_N in zip(pool_BNK, weights_BN, strict=True):
        expected = reference_candidates([tuple(draw) for draw in pool_NK.tolist()], order)
        offered = candidates(pool_NK, weights_N)
        assert list(offered) == list(expected)
        assert list(offered.values()) == pytest.approx(list(expected.values()), rel=1e-14)


def test_rows_fall_back_each_for_itself() -> None:
    pool = torch.tensor([[[1], [1], [1], [2]], [[1], [2], [2], [3]], [[4], [3], [2], [1]]])
    assert temperature_weights(pool, Exponent(3)).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1]]


def test_draws_that_take_no_part_are_not_counted() -> None:
    pool = torch.tensor([[[1], [1], [2], [1], [2]], [[5], [5], [5], [6], [6]]])
    usable = torch.tensor([[False, True, True, False, True], [False, False, False, False, False]])
    weights = temperature_weights(pool, Exponent(2), usable)
    assert weights.tolist() == [[0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]
    assert select(pool[:1], Exponent(), torch.zeros(1), usable[:1]).tolist() == [[1]]


def test_combinations_are_exact_where_they_fit() -> None:
    count = torch.arange(0, 500)
    for order in range(0, 11):
        values = combinations(count, torch.tensor(order), 10).tolist()
        for c, value in zip(count.tolist(), values, strict=True):
            truth = math.comb(c, order)
            assert value == (truth if truth * order < 2**53 else pytest.approx(truth, rel=1e-14))


def test_choice_at_the_edges_lands_on_a_candidate() -> None:
    weights = torch.tensor([[0.0, 2.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    for uniform, place in [(0.0, 1), (0.66, 1), (0.67, 3), (1.0 - 2**-53, 3), (1.0, 3)]:
        assert select_index(weights, torch.tensor([uniform], dtype=torch.float64)).tolist() == [place]


def generalised_comb(count: int, exponent: float) -> float:
    """comb(count, s) for s below count + 1, as the Gamma function continues it."""
    return math.gamma(count + 1) / (math.gamma(exponent + 1) * math.gamma(count - exponent + 1))


def batch_law(law: list[float], exponent: float, pool: int) -> list[float]:
    """Exact law of the choice: expectation over all pools, by multinomial counts."""
    chances = [0.0] * len(law)

    def visit(counts: list[int], left: int) -> None:
        if len(counts) == len(law) - 1:
            counts = [*counts, left]
            chance = math.factorial(pool) * math.prod(
                p**c / math.factorial(c) for p, c in zip(law, counts, strict=True)
            )
            used = exponent if max(counts) >= math.floor(exponent) else max(counts)
            weights = [generalised_comb(c, used) if c >= math.floor(used) else 0.0 for c in counts]
            for x, weight in enumerate(weights):
                chances[x] += chance * weight / sum(weights)
            return
        for count in range(left + 1):
            visit([*counts, count], left - count)

    visit([], pool)
    return chances


@pytest.mark.parametrize(("exponent", "pool"), [(2.0, 3), (2.0, 8), (3.0, 6), (4.0, 4), (1 / 0.7, 5), (2.5, 9)])
def test_frequencies_follow_the_law_of_the_approximation(exponent: float, pool: int) -> None:
    law = [0.45, 0.3, 0.15, 0.1]
    trials = 40_000
    generator = torch.Generator().manual_seed(int(100 * exponent) + pool)
    drawn = torch.multinomial(torch.tensor(law), trials * pool, replacement=True, generator=generator)
    pool_BNK = torch.stack([drawn % 2, drawn // 2], dim=-1).view(trials, pool, 2)
    uniform_B = torch.rand(trials, generator=generator, dtype=torch.float64)
    chosen = select(pool_BNK, Exponent(int(exponent), exponent - int(exponent)), uniform_B)
    observed = torch.bincount(chosen[:, 0] + 2 * chosen[:, 1], minlength=4).tolist()
    expected = [trials * p for p in batch_law(law, exponent, pool)]
    chi_square = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    assert chi_square < 21.1  # 3 degrees of freedom, 1 in 10,000


@pytest.mark.parametrize("temperature", [0.7, 0.5, 0.4, 1 / 3])
def test_a_growing_pool_comes_close_to_the_exact_temperature(temperature: float) -> None:
    law = [0.45, 0.3, 0.25]
    exact = [p ** (1 / temperature) for p in law]
    exact = [p / sum(exact) for p in exact]
    distance = [
        sum(abs(a - b) for a, b in zip(batch_law(law, 1 / temperature, pool), exact, strict=True))
        for pool in (4, 12, 120)
    ]
    assert distance[0] > distance[1] > distance[2]
    assert distance[2] < 3.5 / 120  # the error falls like 1 / N


@pytest.mark.parametrize("whole", [1, 2, 3])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_weights_of_a_fraction_are_what_the_factory_accepts(whole: int, fraction: float) -> None:
    """Against the sum that the module's derivation begins with, over the tails before the first heads."""
    pool = [0] * 6 + [1] * 4 + [2] * 3
    weights = temperature_weights(torch.tensor(pool).view(1, -1, 1), Exponent(whole, fraction))[0]
    offered = weights[weights > 0].tolist()
    left = len(pool) - whole

    def accepted(count: int) -> float:
        heads, total, survival = count - whole, 0.0, 1.0
        for tails in range(left - heads + 1):
            first = math.comb(left - 1 - tails, heads - 1) / math.comb(left, heads) if heads else 0.0
            total += first * survival
            survival *= 1 - fraction / (tails + 1)
        return math.comb(count, whole) * (total if heads else survival / (1 - fraction / (left + 1)))

    expected = [accepted(count) for count in (6, 4, 3)]
    assert [weight / offered[0] for weight in offered] == pytest.approx([value / expected[0] for value in expected])


@pytest.mark.parametrize(
    ("temperature", "whole"),
    [(1.0, 1), (0.5, 2), (0.333, 3), (1 / 3, 3), (0.25, 4), (0.167, 6), (0.1, 10), (0.02, 50)],
)
def test_temperatures_near_one_over_n_have_no_fraction(temperature: float, whole: int) -> None:
    assert Exponent.of(temperature) == Exponent(whole)


@pytest.mark.parametrize(("temperature", "whole"), [(0.7, 1), (0.4, 2), (0.99, 1), (0.3, 3), (0.0138, 72)])
def test_other_temperatures_have_one(temperature: float, whole: int) -> None:
    exponent = Exponent.of(temperature)
    assert exponent.whole == whole and 0 < exponent.fraction < 1
    assert exponent.value == pytest.approx(1 / temperature, rel=1e-15)


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1.5, math.nan, math.inf])
def test_temperatures_out_of_range_are_refused(temperature: float) -> None:
    with pytest.raises(UserError, match=r"not in \(0, 1\]"):
        Exponent.of(temperature)
