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
from calm_megatron.generate.options import temperature_order
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
    weights_BN = temperature_weights(pool_BNK, 2)
    official, ours = random.Random(1234), random.Random(1234)
    for pool_NK, weights_N, expected_K in zip(pool_BNK, weights_BN, tensors["temp_selected_seed1234"], strict=True):
        offered = candidates(pool_NK, weights_N)
        assert list(offered.items()) == list(
            reference_candidates([tuple(draw) for draw in pool_NK.tolist()], 2).items()
        )
        assert official.choices(list(offered), weights=list(offered.values()))[0] == tuple(expected_K.tolist())
        uniform = torch.tensor([ours.random()], dtype=torch.float64)
        assert torch.equal(select(pool_NK[None], 2, uniform)[0], expected_K)


@pytest.mark.parametrize("order", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("outcomes", [1, 3, 40])
def test_weights_are_the_exact_ones(order: int, outcomes: int) -> None:
    generator = torch.Generator().manual_seed(order)
    rows = torch.randint(0, outcomes, (6, 200, 1), generator=generator)
    pool_BNK = torch.cat([rows % 3, rows // 3, 128_256 - rows, rows * 0], dim=-1)
    weights_BN = temperature_weights(pool_BNK, order)
    for pool_NK, weights_N in zip(pool_BNK, weights_BN, strict=True):
        expected = reference_candidates([tuple(draw) for draw in pool_NK.tolist()], order)
        offered = candidates(pool_NK, weights_N)
        assert list(offered) == list(expected)
        assert list(offered.values()) == pytest.approx(list(expected.values()), rel=1e-14)


def test_rows_fall_back_each_for_itself() -> None:
    pool = torch.tensor([[[1], [1], [1], [2]], [[1], [2], [2], [3]], [[4], [3], [2], [1]]])
    assert temperature_weights(pool, 3).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1]]


def test_draws_that_take_no_part_are_not_counted() -> None:
    pool = torch.tensor([[[1], [1], [2], [1], [2]], [[5], [5], [5], [6], [6]]])
    usable = torch.tensor([[False, True, True, False, True], [False, False, False, False, False]])
    weights = temperature_weights(pool, 2, usable)
    assert weights.tolist() == [[0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]
    assert select(pool[:1], 1, torch.zeros(1), usable[:1]).tolist() == [[1]]


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


def batch_law(law: list[float], order: int, pool: int) -> list[float]:
    """Exact law of the choice: expectation over all pools, by multinomial counts."""
    chances = [0.0] * len(law)

    def visit(counts: list[int], left: int) -> None:
        if len(counts) == len(law) - 1:
            counts = [*counts, left]
            chance = math.factorial(pool) * math.prod(
                p**c / math.factorial(c) for p, c in zip(law, counts, strict=True)
            )
            used = min(order, max(counts))
            weights = [math.comb(c, used) for c in counts]
            for x, weight in enumerate(weights):
                chances[x] += chance * weight / sum(weights)
            return
        for count in range(left + 1):
            visit([*counts, count], left - count)

    visit([], pool)
    return chances


@pytest.mark.parametrize(("order", "pool"), [(2, 3), (2, 8), (3, 6), (4, 4)])
def test_frequencies_follow_the_exact_law_of_the_approximation(order: int, pool: int) -> None:
    law = [0.45, 0.3, 0.15, 0.1]
    trials = 40_000
    generator = torch.Generator().manual_seed(100 * order + pool)
    drawn = torch.multinomial(torch.tensor(law), trials * pool, replacement=True, generator=generator)
    pool_BNK = torch.stack([drawn % 2, drawn // 2], dim=-1).view(trials, pool, 2)
    uniform_B = torch.rand(trials, generator=generator, dtype=torch.float64)
    chosen = select(pool_BNK, order, uniform_B)
    observed = torch.bincount(chosen[:, 0] + 2 * chosen[:, 1], minlength=4).tolist()
    expected = [trials * p for p in batch_law(law, order, pool)]
    chi_square = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    assert chi_square < 21.1  # 3 degrees of freedom, 1 in 10,000


def test_a_growing_pool_comes_close_to_the_exact_temperature() -> None:
    law = [0.45, 0.3, 0.25]
    exact = [p**2 / sum(q**2 for q in law) for p in law]
    distance = [sum(abs(a - b) for a, b in zip(batch_law(law, 2, pool), exact, strict=True)) for pool in (2, 6, 60)]
    assert distance[0] > distance[1] > distance[2]
    assert distance[2] < 0.02


@pytest.mark.parametrize(
    ("temperature", "order"), [(1.0, 1), (0.5, 2), (0.333, 3), (1 / 3, 3), (0.25, 4), (0.167, 6), (0.1, 10), (0.02, 50)]
)
def test_temperatures_that_are_one_over_n(temperature: float, order: int) -> None:
    assert temperature_order(temperature) == order


@pytest.mark.parametrize(
    ("temperature", "advice"), [(0.7, r"use 1 \(1/1\) or 0.5 \(1/2\)"), (0.4, r"0.5 \(1/2\) or 0.3333 \(1/3\)")]
)
def test_other_temperatures_name_the_nearest(temperature: float, advice: str) -> None:
    with pytest.raises(UserError, match=advice):
        temperature_order(temperature)


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1.5, math.nan, math.inf])
def test_temperatures_out_of_range_are_refused(temperature: float) -> None:
    with pytest.raises(UserError, match=r"not in \(0, 1\]"):
        temperature_order(temperature)
