"""Simulated pipelines against what can be reckoned by hand, and estimates against their own assumptions."""

import random

import pytest
from deepspeed.runtime.pipe.schedule import BackwardPass, ForwardPass, TrainSchedule

from benchmarks.small_run import small
from calm_megatron.plan.devices import DEVICES, device, device_of
from calm_megatron.plan.layouts import USABLE, layout_of, ranked
from calm_megatron.plan.pace import Assumptions, model_flops, pace
from calm_megatron.plan.report import read_autoencoder, read_for_plan
from calm_megatron.plan.simulation import StageTimes, order, simulate
from tests.small_runs import ROOT

XL = read_for_plan([ROOT / "examples/models/calm_xl.yaml", ROOT / "examples/machines/gpu_node.yaml"])
AUTOENCODER = read_autoencoder(ROOT / "examples/models/ae_75m.yaml")
H100 = DEVICES[2]


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("micro_batches", [1, 2, 3, 8, 17])
def test_the_order_is_deepspeeds(stages: int, micro_batches: int) -> None:
    for stage in range(stages):
        schedule = TrainSchedule(micro_batches, stages, stage)
        theirs = [
            isinstance(command, ForwardPass)
            for step in schedule
            for command in step
            if isinstance(command, ForwardPass | BackwardPass)
        ]
        ours = order(stage, stages, micro_batches)
        assert [forward for forward, _ in ours] == theirs
        assert sorted(ours) == sorted((way, number) for way in (True, False) for number in range(micro_batches))


@pytest.mark.parametrize(("stages", "micro_batches"), [(1, 5), (2, 4), (4, 4), (4, 32), (8, 3)])
def test_equal_stages_wait_as_the_formula_says(stages: int, micro_batches: int) -> None:
    # (S - 1) / (M + S - 1): Narayanan et al., arXiv 2104.04473, section 2.2.
    step = simulate([StageTimes(1.0, 2.0)] * stages, micro_batches)
    assert step.seconds == pytest.approx(3.0 * (micro_batches + stages - 1))
    assert 1 - sum(step.busy) / stages == pytest.approx((stages - 1) / (micro_batches + stages - 1))


def test_a_step_is_never_quicker_than_its_slowest_stage_or_its_longest_way() -> None:
    dice = random.Random(1)
    for _ in range(100):
        count, micro_batches = dice.randrange(1, 6), dice.randrange(1, 12)
        stages = [StageTimes(*(dice.random() for _ in range(5))) for _ in range(count)]
        seconds = simulate(stages, micro_batches).seconds
        own = [
            micro_batches * (s.forward + s.backward + s.send_forward * (n < count - 1) + s.send_backward * (n > 0))
            + s.update
            for n, s in enumerate(stages)
        ]
        way = sum(s.forward + s.backward for s in stages)
        assert max(*own, way) <= seconds + 1e-9
        assert seconds <= sum(own) + 1e-9


def test_without_exchange_and_pipeline_the_share_of_the_peak_is_the_mfu() -> None:
    config = small("train.precision=bf16", "parallel.zero_stage=1")
    found = pace(config, 1, H100, Assumptions(peak_share=0.4))
    assert found is not None and found.mfu == pytest.approx(0.4) and found.bubble == 0
    flops = model_flops(config) * config.train.global_batch_size
    assert found.step_seconds == pytest.approx(flops / (0.4 * 989.4e12))
    assert found.gpu_hours == pytest.approx(found.step_seconds * 100 / 3600)


def test_recomputation_takes_time_and_is_no_model_flops() -> None:
    plain, full = small(), small("train.recompute_granularity=full")
    assert model_flops(plain) == model_flops(full)
    quick, slow = pace(plain, 1, H100), pace(full, 1, H100)
    assert quick and slow and slow.step_seconds > quick.step_seconds and slow.mfu < quick.mfu


def test_an_unknown_peak_gives_no_time() -> None:
    v100 = device("v100")
    assert v100 is not None and pace(small("train.precision=bf16", "parallel.zero_stage=1"), 1, v100) is None
    assert device("abacus") is None
    assert device_of("NVIDIA H100 PCIe") is None, "the card is slower than the board"
    assert device_of("NVIDIA H100 80GB HBM3") is H100
    assert len({known.name for known in DEVICES}) == len(DEVICES)
    assert all(known.source.startswith("https://") for known in DEVICES)


def test_layouts_that_are_listed_fit_and_are_sorted() -> None:
    found = ranked(XL, 16, H100, None, AUTOENCODER)
    times = [layout.pace.step_seconds for layout in found if layout.pace]
    assert len(times) == len(found) > 10 and times == sorted(times)
    for layout in found:
        parallel = layout.config.parallel
        assert parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size * layout.data_ranks == 16
        assert max(stage.total for stage in layout.memory) <= USABLE * 80e9
        assert layout.config.train.global_batch_size == XL.train.global_batch_size
    again = layout_of(found[0].config, 16, H100, None, AUTOENCODER)
    assert again == found[0]


def test_a_layout_that_does_not_divide_is_told() -> None:
    with pytest.raises(ValueError, match="does not divide"):
        pace(small("parallel.pipeline_model_parallel_size=2"), 3, H100)
