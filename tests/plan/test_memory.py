"""The formula of memory against the peaks of real runs, and against the textbook's."""

from collections.abc import Callable

import pytest

from benchmarks.memory import beside_the_formula
from benchmarks.small_run import small
from calm_megatron.config.schema import RunConfig
from calm_megatron.plan.counts import calm_parameters
from calm_megatron.plan.memory import state_memory

Run = Callable[..., RunConfig]


def test_each_stage_holds_what_was_measured() -> None:
    parts = beside_the_formula()
    assert len(parts) == 7 + 5  # fp32 at ZeRO 0 and bf16 at ZeRO 1 have no bucket
    assert {part.name: part.ratio for part in parts} == {part.name: pytest.approx(1, rel=0.1) for part in parts}


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_shares_are_the_textbooks(zero: int) -> None:
    config = small(f"parallel.zero_stage={zero}", "train.precision=bf16")
    whole = sum(calm_parameters(config.model).values())  # type: ignore[arg-type]
    held = state_memory(config, data_ranks=4)
    assert held.moments == pytest.approx(8 * whole / 4, rel=1e-3)
    assert held.master_weights == pytest.approx(4 * whole / 4, rel=1e-3)
    assert held.weights == pytest.approx(2 * whole / (4 if zero == 3 else 1), rel=1e-3)
    assert held.total == held.weights + held.master_weights + held.moments + held.gradients + held.bucket


def test_tensor_ranks_and_stages_share_the_weights() -> None:
    whole = state_memory(small()).weights
    by_stage = [state_memory(small("parallel.pipeline_model_parallel_size=3"), stage=stage) for stage in range(3)]
    assert sum(held.weights for held in by_stage) == whole
    # The head is a copy on each tensor rank, so two of them hold more than one of everything.
    assert whole / 2 < state_memory(small("parallel.tensor_model_parallel_size=2")).weights < whole


def test_more_data_ranks_need_less(preset: Run) -> None:
    for zero in (1, 2, 3):
        config = preset("calm_xl", f"parallel.zero_stage={zero}")
        totals = [state_memory(config, ranks).total for ranks in (1, 2, 8, 64)]
        assert totals == sorted(totals, reverse=True) and len(set(totals)) == 4
