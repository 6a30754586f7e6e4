"""Bad steps: left out by all ranks alike, told of, and the end of the run when there are too many."""

import math
from pathlib import Path

import pytest

from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import TrainConfig
from calm_megatron.telemetry.run_log import read_log
from calm_megatron.train.health import WINDOW, Health
from tests.small_runs import AR, ROOT, settings
from tests.train.launches import Program, launch

WORKER = ROOT / "tests" / "train" / "health_worker.py"
FAULTY_STEP = 4
LAYOUTS = {
    "zero0": {"zero_stage": 0},
    "zero1": {"zero_stage": 1},
    "zero2": {"zero_stage": 2},
    "zero3": {"zero_stage": 3},
    "tensor2_zero3": {"zero_stage": 3, "tensor_model_parallel_size": 2},
    "pipe2_zero0": {"zero_stage": 0, "pipeline_model_parallel_size": 2},
    "pipe2_zero1": {"zero_stage": 1, "pipeline_model_parallel_size": 2},
    "bf16_zero1": {"zero_stage": 1, "precision": "bf16"},
    "bf16_zero2": {"zero_stage": 2, "precision": "bf16"},
    "bf16_pipe2": {"zero_stage": 1, "pipeline_model_parallel_size": 2, "precision": "bf16"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, small_corpus: Path, program: Program) -> Path:
    """Folder with the runs of all layouts and faults, on two ranks, and of one rank."""
    folder = tmp_path_factory.mktemp("health")

    def job(name: str, fault: str, layout: dict[str, object]) -> dict[str, object]:
        changes = {f"parallel__{key}": value for key, value in layout.items() if key != "precision"}
        changes["train__precision"] = layout.get("precision", "fp32")
        overrides = settings(AR, run__directory=folder / f"{name}_{fault}", data__data_path=small_corpus, **changes)
        return {"overrides": overrides, "fault": fault}

    launches = {
        1: [job("one", fault, {}) for fault in ("loss", "gradient", "")],
        2: [job(name, fault, layout) for name, layout in LAYOUTS.items() for fault in ("loss", "gradient")],
    }
    for ranks, jobs in launches.items():
        launch(program, WORKER, folder / f"jobs_{ranks}.json", jobs, ranks, timeout=600)
    return folder


def losses(run: Path) -> list[float]:
    """Of the steps whose loss was a number."""
    return [loss for loss in read_log(run / "log.jsonl").series("loss")[1] if math.isfinite(loss)]


@pytest.mark.parametrize("fault", ["loss", "gradient"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_ranks_leave_out_the_step_that_went_wrong_on_one(runs: Path, layout: str, fault: str) -> None:
    log = read_log(runs / f"{layout}_{fault}" / "log.jsonl")
    assert log.series("skipped") == ([FAULTY_STEP], [1.0])
    assert FAULTY_STEP not in log.series("grad_norm")[0] and len(log.series("grad_norm")[0]) == 9
    (told,) = [event.message for event in log.events if event.kind == "health"]
    assert f"step {FAULTY_STEP} was left out" in told and told.endswith("sequences 24 to 31")
    unit = 2**-8 if "bf16" in layout else 1e-4
    ours, one = losses(runs / f"{layout}_{fault}"), losses(runs / f"one_{fault}")
    assert ours == pytest.approx(one, rel=unit)
    assert len(ours) == (9 if fault == "loss" else 10)


def test_the_step_that_was_left_out_is_missed(runs: Path) -> None:
    assert losses(runs / "one_gradient")[:4] == losses(runs / "one_")[:4]
    assert losses(runs / "one_gradient")[4:] != pytest.approx(losses(runs / "one_")[4:], rel=1e-4)


def config(**changes: object) -> TrainConfig:
    return TrainConfig(train_iters=1000, **changes)  # type: ignore[arg-type]


def steady(number: int) -> list[float]:
    """Losses around 2, none far off."""
    return [2.0 + 0.1 * math.sin(step) for step in range(number)]


def judge(health: Health, loss: float, step: int = 1) -> str | None:
    return health.after_step(step, loss, not health.allows(loss), range(7, 10))


def test_a_spike_is_told_with_its_batch_and_taken() -> None:
    health = Health(config(), steady(50))
    assert judge(health, 2.05) is None
    told = judge(health, 9.0, step=52)
    assert told is not None
    assert "loss 9.0000 in step 52 is a spike" in told and "taken" in told and told.endswith("sequences 7 to 9")


def test_a_spike_may_be_left_out() -> None:
    health = Health(config(skip_loss_spikes=True), steady(50))
    assert health.allows(2.1) and not health.allows(9.0)
    told = judge(health, 9.0)
    assert told is not None and "left out" in told
    assert health.skipped_in_a_row == 1
    assert judge(health, 2.0) is None and health.skipped_in_a_row == 0


def test_without_a_threshold_or_a_past_there_are_no_spikes() -> None:
    assert judge(Health(config(loss_spike_threshold=0.0), steady(50)), 1e9) is None
    assert judge(Health(config(), steady(5)), 1e9) is None


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_too_many_bad_steps_end_the_run(loss: float) -> None:
    health = Health(config(max_skipped_steps=3), steady(50))
    assert "step 1 was left out" in str(judge(health, loss, step=1))
    judge(health, loss, step=2)
    with pytest.raises(UserError, match="3 steps in a row, up to step 3,") as caught:
        judge(health, loss, step=3)
    assert "sequences 7 to 9" in caught.value.where


def test_what_is_kept_makes_the_same_judge() -> None:
    straight = Health(config(skip_loss_spikes=True))
    past = [*steady(150), math.nan, 2.0]
    for step, loss in enumerate(past):
        judge(straight, loss, step)
    resumed = Health(config(skip_loss_spikes=True), straight.recent, straight.skipped_in_a_row)
    assert len(straight.recent) == WINDOW and not any(map(math.isnan, straight.recent))
    for loss in (2.3, 2.31, 2.5, 2.8, 3.5):
        assert straight.allows(loss) == resumed.allows(loss)
