"""Cut a list of layers into pipeline stages: by FLOPs as we do, and as DeepSpeed does for comparison."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

from calm_megatron.config.schema import AutoencoderConfig, RunConfig
from calm_megatron.plan.layers import layer_costs


@lru_cache(maxsize=256)
def stage_layers(
    config: RunConfig, stages: int, autoencoder: AutoencoderConfig | None = None
) -> tuple[tuple[str, ...], ...]:
    """Names of the layers of each stage, cut by the FLOPs of a training step; arguments as in `layer_costs`.

    Raises:
        ValueError: there are more stages than layers.
    """
    costs = layer_costs(config, autoencoder)
    cuts = cut([cost.step_flops for cost in costs], stages)
    return tuple(tuple(costs[layer].name for layer in layers) for layers in cuts)


def cut(weights: Sequence[float], stages: int) -> tuple[range, ...]:
    """The runs of neighbours whose largest sum is as small as possible, and among these the sum of the squares.

    What weighs nothing stays with what comes before it, unless there is a stage for it alone.

    Args:
        weights: of the layers, none below 0.
        stages: how many runs; none is empty.

    Raises:
        ValueError: there are more stages than weights.
    """
    if not 1 <= stages <= len(weights):
        raise ValueError(f"{len(weights)} layers cannot be cut into {stages} stages")
    slowest = _best_cut(weights, stages, max, lambda weight: weight, math.inf)
    # Added up in the same order as in the search, so that rounding cannot put a stage above its own limit.
    limit = max(sum(weights[layer] for layer in reversed(layers)) for layers in slowest)
    return _best_cut(weights, stages, lambda before, last: before + last, lambda weight: weight * weight, limit)


def uniform_cut(layers: int, stages: int) -> tuple[range, ...]:
    """DeepSpeed's `uniform` (`partition_uniform`): equal numbers of layers, the first stages one more."""
    size, more = divmod(layers, stages)
    return _ranges([stage * size + min(stage, more) for stage in range(stages + 1)])


def parameter_cut(parameters: Sequence[int], stages: int) -> tuple[range, ...]:
    """DeepSpeed's `parameters` (`partition_balanced`): least difference of the largest and the smallest stage.

    It extends the best cut of a shorter list stage by stage, which does not always find the least difference, and
    takes the last of equal cuts. Both decide what DeepSpeed makes of a model, so both are kept.
    """
    if len(parameters) <= stages:
        return uniform_cut(len(parameters), stages)
    ends = [0, *accumulate(parameters)]
    best: dict[int, tuple[float, float]] = {0: (0, math.inf)}
    starts: list[dict[int, int]] = []
    for stage in range(stages):
        found: dict[int, tuple[float, float]] = {}
        start_of: dict[int, int] = {}
        for end in range(stage + 1, len(ends)):
            for start, (largest, smallest) in best.items():
                if start < end:
                    size = ends[end] - ends[start]
                    extremes = max(largest, size), min(smallest, size)
                    if end not in found or _difference(extremes) <= _difference(found[end]):
                        found[end], start_of[end] = extremes, start
        best = found
        starts.append(start_of)
    return _walk_back(starts, len(parameters))


def _difference(extremes: tuple[float, float]) -> float:
    return extremes[0] - extremes[1]


def _best_cut(
    weights: Sequence[float],
    stages: int,
    combine: Callable[[float, float], float],
    price: Callable[[float], float],
    limit: float,
) -> tuple[range, ...]:
    """The cut of the least combined price with no stage above the limit; of equals, that with the latest cuts."""
    best: dict[int, float] = {0: 0}
    starts: list[dict[int, int]] = []
    for stage in range(stages):
        found: dict[int, float] = {}
        start_of: dict[int, int] = {}
        for end in range(stage + 1, len(weights) + 1):
            weight: float = 0
            for start in range(end - 1, stage - 1, -1):
                weight += weights[start]
                if weight > limit:
                    break
                if start in best:
                    total = combine(best[start], price(weight))
                    if end not in found or total < found[end]:
                        found[end], start_of[end] = total, start
        best = found
        starts.append(start_of)
    return _walk_back(starts, len(weights))


def _walk_back(starts: Sequence[dict[int, int]], layers: int) -> tuple[range, ...]:
    """The ranges, from where the best last stage before each end starts, stage by stage."""
    bounds = [layers]
    for start_of in reversed(starts):
        bounds.append(start_of[bounds[-1]])
    return _ranges(bounds[::-1])


def _ranges(bounds: Sequence[int]) -> tuple[range, ...]:
    return tuple(range(start, end) for start, end in pairwise(bounds))
