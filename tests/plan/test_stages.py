"""Cuts into stages against all possible cuts, against DeepSpeed's own functions, and for the published sizes."""

import itertools
import random
from collections.abc import Callable, Sequence

import pytest
from deepspeed.runtime.utils import partition_balanced, partition_uniform

from calm_megatron.config.schema import RunConfig
from calm_megatron.plan.layers import layer_costs, layer_names
from calm_megatron.plan.report import slowest_to_mean
from calm_megatron.plan.stages import cut, parameter_cut, stage_layers, uniform_cut

Run = Callable[..., RunConfig]
PRESETS = ("calm_m", "calm_l", "calm_xl")


def all_cuts(layers: int, stages: int) -> list[tuple[range, ...]]:
    bounds = [(0, *inner, layers) for inner in itertools.combinations(range(1, layers), stages - 1)]
    return [tuple(itertools.starmap(range, itertools.pairwise(bound))) for bound in bounds]


def price(weights: Sequence[float], ranges: tuple[range, ...]) -> tuple[float, float]:
    sums = [sum(weights[layer] for layer in layers) for layers in ranges]
    return max(sums), sum(weight * weight for weight in sums)


def test_no_cut_is_better() -> None:
    draw = random.Random(1)
    for _ in range(300):
        weights = [draw.choice((0, 1, 2, 3, 50, draw.randrange(1, 10))) for _ in range(draw.randrange(1, 10))]
        stages = draw.randrange(1, len(weights) + 1)
        possible = all_cuts(len(weights), stages)
        found = cut(weights, stages)
        assert found in possible
        assert price(weights, found) == min(price(weights, other) for other in possible)


def test_rounding_does_not_exclude_the_best_cut() -> None:
    draw = random.Random(2)
    for _ in range(200):
        weights = [draw.choice((0.1, 0.2, 0.3, 1e-17, draw.random())) for _ in range(draw.randrange(2, 10))]
        stages = draw.randrange(1, len(weights) + 1)
        possible = all_cuts(len(weights), stages)
        largest, _ = price(weights, cut(weights, stages))
        assert largest == pytest.approx(min(price(weights, other)[0] for other in possible), rel=1e-12)


def test_what_weighs_nothing_stays_with_what_is_before_it() -> None:
    assert cut([2, 2, 0, 2, 2], 2) == (range(3), range(3, 5))
    assert cut([2, 0, 0, 2], 2) == (range(3), range(3, 4))
    assert cut([2, 0, 2], 3) == (range(1), range(1, 2), range(2, 3))


@pytest.mark.parametrize("stages", [0, 4])
def test_stages_without_a_layer_are_refused(stages: int) -> None:
    with pytest.raises(ValueError, match=f"3 layers cannot be cut into {stages} stages"):
        cut([1, 1, 1], stages)


@pytest.mark.parametrize("name", [*PRESETS, "calm_demo", "ar_demo"])
def test_the_last_norm_stays_with_the_last_layer(name: str, preset: Run) -> None:
    config = preset(name)
    names = layer_names(config.model)
    for number in range(1, len(names) - 1):
        stages = stage_layers(config, number)
        assert sum(stages, ()) == names
        assert all(stage[0] != "final_norm" for stage in stages)


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("stages", [4, 8])
@pytest.mark.parametrize("name", PRESETS)
def test_no_stage_is_much_slower_than_the_mean(name: str, stages: int, recompute: str, preset: Run) -> None:
    config = preset(name, f"train.recompute_granularity={recompute}")
    for autoencoder in (None, preset("ae_75m").model):
        costs = layer_costs(config, autoencoder)
        weights = [cost.step_flops for cost in costs]
        assert 1 <= slowest_to_mean(costs, cut(weights, stages)) <= 1.15


@pytest.mark.parametrize("name", PRESETS)
def test_deepspeeds_cuts_are_those_of_deepspeed(name: str, preset: Run) -> None:
    costs = layer_costs(preset(name))
    parameters = [cost.parameters for cost in costs]
    for stages in range(1, len(costs) + 1):
        assert bounds(parameter_cut(parameters, stages)) == list(partition_balanced(parameters, stages))
        assert bounds(uniform_cut(len(costs), stages)) == list(partition_uniform(len(costs), stages))


def bounds(ranges: tuple[range, ...]) -> list[int]:
    return [ranges[0].start, *(layers.stop for layers in ranges)]
