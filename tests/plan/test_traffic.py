"""The formulas of traffic against what real runs hand to torch.distributed."""

from collections.abc import Callable, Sequence

import pytest

from benchmarks.small_run import small
from benchmarks.traffic import BF16, SEQUENCE, TENSOR, beside_the_formula
from calm_megatron.config.schema import RunConfig
from calm_megatron.plan.traffic import Kind, step_traffic

PIPE = "parallel.pipeline_model_parallel_size=2"
RECOMPUTE = "train.recompute_granularity=full"
LARGE = ("model.hidden_size=320", "model.num_layers=1", "model.head.num_layers=1")
LAYOUTS: dict[str, Sequence[str]] = {
    "tensor": (TENSOR,),
    "recompute, 16 bits": (TENSOR, RECOMPUTE, *BF16),
    "sequence": (TENSOR, SEQUENCE),
    "sequence, recompute, latents": (TENSOR, SEQUENCE, RECOMPUTE, "model.input=latents"),
    "pipe within the head": (PIPE,),
    "pipe within the backbone": (PIPE, "model.num_layers=6"),
    "tensor, diffusion": (TENSOR, "model.head.type=diffusion", *BF16),
    "tensor, flow": (TENSOR, SEQUENCE, "model.head.type=flow"),
    "pipe within the diffusion head": (PIPE, "model.head.type=diffusion"),
    "zero 0": ("parallel.zero_stage=0",),
    "zero 1": ("parallel.zero_stage=1",),
    "zero 2": ("parallel.zero_stage=2",),
    "zero 3": ("parallel.zero_stage=3", *LARGE),
}


def test_each_kind_is_what_was_counted() -> None:
    parts = beside_the_formula(2, LAYOUTS)
    assert {part.name.split(":")[0].split(", stage")[0] for part in parts} == set(LAYOUTS)
    assert {part.name: part.ratio for part in parts} == {part.name: pytest.approx(1, rel=0.001) for part in parts}


def test_a_rank_alone_sends_nothing() -> None:
    assert step_traffic(small()) == {}


def test_shares_grow_with_the_ranks_as_a_rings_do() -> None:
    (two,), (four,) = (step_traffic(small(), ranks).values() for ranks in (2, 4))
    assert four / two == pytest.approx((2 * 3 / 4) / (2 * 1 / 2))


def test_what_a_stage_sends_enters_the_next() -> None:
    config = small("parallel.pipeline_model_parallel_size=4", TENSOR)
    stages = [step_traffic(config, 1, stage) for stage in range(4)]
    forward, back = Kind("pipeline", "activations", "send"), Kind("pipeline", "activations' gradients", "send")
    assert [stage[forward] for stage in stages[:-1]] == [stage[back] for stage in stages[1:]]
    assert back not in stages[0] and forward not in stages[-1]


def test_only_calm_is_counted(small_ar: Callable[..., RunConfig]) -> None:
    with pytest.raises(TypeError, match="ArConfig is no CALM"):
        step_traffic(small_ar())
