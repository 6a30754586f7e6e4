"""The layout changes nothing but speed and memory: losses, norms and weights of many small runs side by side.

Two launches train everything that the tests compare, since starting ranks costs most of the time.
"""

import json
from pathlib import Path

import pytest
import torch

from calm_megatron.checkpoint.load import whole_weights
from calm_megatron.telemetry.run_log import read_log
from tests.small_runs import AR, AUTOENCODER, CALM, ROOT, TRAINED_AUTOENCODER, settings
from tests.train.launches import LAYOUTS_WORKER, Program, launch

STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, small_corpus: Path, program: Program) -> Path:
    """Folder with the runs of all layouts."""
    folder = tmp_path_factory.mktemp("runs")

    def job(name: str, base: list[str], **changes: object) -> list[str]:
        if base is CALM:
            changes = {"model__autoencoder": folder / "autoencoder", **changes}
        return settings(base, run__directory=folder / name, data__data_path=small_corpus, **changes)

    one_rank = [
        job("autoencoder", TRAINED_AUTOENCODER),
        job("autoencoder_zero", AUTOENCODER),
        job("calm", CALM),
        job("ar", AR),
        job("calm_recompute", CALM, train__recompute_granularity="full"),
        job("calm_micro_batch_4", CALM, train__micro_batch_size=4),
        job("calm_latents", CALM, model__input="latents"),
        job("calm_ramp", CALM, train__rampup_batch_size="[2,2,20]"),
        job("calm_bf16", CALM, train__precision="bf16", parallel__zero_stage=1),
        job(
            "calm_bf16_one_micro_batch",
            CALM,
            train__precision="bf16",
            parallel__zero_stage=1,
            train__micro_batch_size=8,
        ),
    ]
    two_ranks = []
    for stage in STAGES:
        two_ranks += [
            job(f"calm_zero{stage}", CALM, parallel__zero_stage=stage),
            job(f"calm_zero{stage}_resumed", CALM, parallel__zero_stage=stage, train__train_iters=5),
            job(f"calm_zero{stage}_resumed", CALM, parallel__zero_stage=stage),
            job(f"autoencoder_zero{stage}", AUTOENCODER, parallel__zero_stage=stage),
        ]
        if stage:
            two_ranks.append(job(f"calm_bf16_zero{stage}", CALM, parallel__zero_stage=stage, train__precision="bf16"))
    two_ranks += [
        job("calm_ramp_zero2", CALM, train__rampup_batch_size="[4,4,16]", parallel__zero_stage=2),
        job("calm_ramp_zero0", CALM, train__rampup_batch_size="[4,4,16]"),
        job("calm_recompute_zero3", CALM, train__recompute_granularity="full", parallel__zero_stage=3),
    ]
    # Larger micro-batches where tensor ranks talk in each of them.
    tensor2 = {"parallel__tensor_model_parallel_size": 2, "train__micro_batch_size": 4}
    for stage in STAGES:
        tensor = {**tensor2, "parallel__sequence_parallel": stage % 2 == 1}
        two_ranks.append(job(f"calm_tensor2_zero{stage}", CALM, parallel__zero_stage=stage, **tensor))
    whole = {**tensor2, "parallel__sequence_parallel": True}
    two_ranks += [
        job("calm_tensor2_resumed", CALM, train__train_iters=5, parallel__zero_stage=3, **whole),
        job("calm_tensor2_resumed", CALM, parallel__zero_stage=3, **whole),
        job("calm_tensor2_recompute", CALM, train__recompute_granularity="full", **whole),
        job("calm_tensor2_checked", CALM, parallel__check_replicas_interval=2, parallel__zero_stage=3, **whole),
        job("calm_checked", CALM, parallel__check_replicas_interval=2, parallel__zero_stage=1),
        job("calm_tensor2_bf16", CALM, train__precision="bf16", parallel__zero_stage=1, **whole),
        job("calm_latents_tensor2", CALM, model__input="latents", **whole),
        job("ar_tensor2", AR, **whole),
        job("ar_tensor2_zero3", AR, parallel__zero_stage=3, **tensor2),
        job("ar_zero2", AR, parallel__zero_stage=2),
    ]
    pipe = {"parallel__pipeline_model_parallel_size": 2, "parallel__zero_stage": 1}
    two_ranks += [
        job("calm_pipe2", CALM, parallel__check_replicas_interval=5, **pipe),
        job("calm_pipe2_resumed", CALM, train__train_iters=5, **pipe),
        job("calm_pipe2_resumed", CALM, **pipe),
        job("calm_bf16_pipe2", CALM, train__precision="bf16", **pipe),
        job("calm_bf16_pipe2_resumed", CALM, train__precision="bf16", train__train_iters=5, **pipe),
        job("calm_bf16_pipe2_resumed", CALM, train__precision="bf16", **pipe),
        job("calm_ramp_pipe2", CALM, train__rampup_batch_size="[4,4,16]", **pipe),
        job("calm_latents_pipe2", CALM, model__input="latents", **pipe),
    ]
    for ranks, jobs in ((1, one_rank), (2, two_ranks)):
        launch(program, LAYOUTS_WORKER, folder / f"jobs_{ranks}.json", jobs, ranks, timeout=600)
    return folder


def losses(run: Path) -> list[float]:
    return read_log(run / "log.jsonl").series("loss")[1]


def norms(run: Path) -> list[float]:
    return read_log(run / "log.jsonl").series("grad_norm")[1]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return whole_weights(run / "checkpoints" / "step_00000010")


def validation(run: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((run / "evaluation.json").read_text())
    return found


@pytest.mark.parametrize("model", ["calm", "autoencoder"])
@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_give_the_losses_of_one(runs: Path, model: str, stage: int) -> None:
    one, two = runs / (model if model == "calm" else "autoencoder_zero"), runs / f"{model}_zero{stage}"
    assert len(losses(one)) == 10
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert norms(two) == pytest.approx(norms(one), rel=1e-4)
    assert losses(one)[-1] < losses(one)[0]


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_is_the_run_that_was_never_stopped(runs: Path, stage: int) -> None:
    straight, resumed = runs / f"calm_zero{stage}", runs / f"calm_zero{stage}_resumed"
    assert [event.kind for event in read_log(resumed / "log.jsonl").events].count("resume") == 1
    assert losses(resumed) == losses(straight)
    ours, theirs = weights(straight), weights(resumed)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("name", ["calm_recompute", "calm_micro_batch_4", "calm_recompute_zero3"])
def test_recomputation_and_micro_batches_change_nothing(runs: Path, name: str) -> None:
    assert losses(runs / name) == pytest.approx(losses(runs / "calm"), rel=1e-5)
    assert norms(runs / name) == pytest.approx(norms(runs / "calm"), rel=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_validation_does_not_depend_on_the_layout(runs: Path, stage: int) -> None:
    one, two = validation(runs / "calm"), validation(runs / f"calm_zero{stage}")
    assert one["patches"] == two["patches"]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["brier"] == pytest.approx(one["brier"], abs=1e-3)


@pytest.mark.parametrize("name", [*(f"calm_tensor2_zero{stage}" for stage in STAGES), "calm_tensor2_recompute"])
def test_two_tensor_ranks_give_the_run_of_one(runs: Path, name: str) -> None:
    one, two = runs / "calm", runs / name
    assert losses(two)[0] == pytest.approx(losses(one)[0], rel=1e-5)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert norms(two) == pytest.approx(norms(one), rel=1e-4)
    ours, theirs = weights(one), weights(two)
    assert ours.keys() == theirs.keys()
    for weight, other in zip(ours.values(), theirs.values(), strict=True):
        assert weight.shape == other.shape
        # Adam turns the rounding of a tiny gradient into a step of any size up to the learning rate.
        assert (weight - other).abs().mean() < 1e-5
    assert validation(two)["loss"] == pytest.approx(validation(one)["loss"], rel=1e-4)


@pytest.mark.parametrize("name", ["ar_tensor2", "ar_tensor2_zero3", "ar_zero2"])
def test_the_baseline_trains_the_same_in_every_layout(runs: Path, name: str) -> None:
    one, other = runs / "ar", runs / name
    assert losses(other) == pytest.approx(losses(one), rel=1e-4)
    assert norms(other) == pytest.approx(norms(one), rel=1e-4)
    assert losses(one)[-1] < losses(one)[0]
    assert validation(other)["perplexity"] == pytest.approx(validation(one)["perplexity"], rel=1e-4)


@pytest.mark.parametrize(
    ("checked", "plain"), [("calm_tensor2_checked", "calm_tensor2_zero3"), ("calm_checked", "calm_zero1")]
)
def test_copies_stay_equal_and_looking_changes_nothing(runs: Path, checked: str, plain: str) -> None:
    assert losses(runs / checked) == losses(runs / plain)


@pytest.mark.parametrize(
    ("resumed", "straight"),
    [
        ("calm_tensor2_resumed", "calm_tensor2_zero3"),
        ("calm_pipe2_resumed", "calm_pipe2"),
        ("calm_bf16_pipe2_resumed", "calm_bf16_pipe2"),
    ],
)
def test_tensor_ranks_and_stages_resume_exactly(runs: Path, resumed: str, straight: str) -> None:
    assert [event.kind for event in read_log(runs / resumed / "log.jsonl").events].count("resume") == 1
    assert losses(runs / resumed) == losses(runs / straight)
    ours, theirs = weights(runs / straight), weights(runs / resumed)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("layout", ["tensor2", "pipe2"])
def test_latents_as_input_are_the_same_in_other_layouts(runs: Path, layout: str) -> None:
    assert losses(runs / f"calm_latents_{layout}") == pytest.approx(losses(runs / "calm_latents"), rel=1e-4)
    assert norms(runs / f"calm_latents_{layout}") == pytest.approx(norms(runs / "calm_latents"), rel=1e-4)


def test_a_run_of_stages_is_scored_and_generates_on_one_rank(runs: Path, program: Program) -> None:
    run, scores = runs / "calm_pipe2", runs / "scores.json"
    done = program(ROOT / "tools" / "evaluate.py", "--model", run, "--eval-iters", "2", "--output", scores)
    assert done.returncode == 0, done.stderr
    found = json.loads(scores.read_text())
    assert found["loss"] == pytest.approx(validation(run)["loss"], rel=1e-5)
    assert found["brier"] == pytest.approx(validation(run)["brier"], abs=1e-6)
    done = program(
        ROOT / "tools" / "generate.py", "--model", run, "--prompt", "The for statement", "--max-new-tokens", "8"
    )
    assert done.returncode == 0, done.stderr
    assert "The for statement" in done.stdout


def test_bf16_follows_fp32(runs: Path) -> None:
    """bf16 keeps 8 bits of a number: a loss may be off by 2^-8, and a gradient, through many layers, by more."""
    for name in ("calm_bf16", "calm_tensor2_bf16", *(f"calm_bf16_zero{stage}" for stage in STAGES[1:])):
        assert losses(runs / name) == pytest.approx(losses(runs / "calm"), rel=2**-8)
        assert norms(runs / name) == pytest.approx(norms(runs / "calm"), rel=2**-5)


def test_bf16_accumulates_in_fp32_whatever_the_number_of_micro_batches(runs: Path) -> None:
    """DeepSpeed's default adds running sums of bf16 gradients: 2.5 times the norm with four micro-batches."""
    four, one = norms(runs / "calm_bf16"), norms(runs / "calm_bf16_one_micro_batch")
    assert four == pytest.approx(one, rel=2**-5)


def test_the_batch_ramps_up_the_same_way_in_every_layout(runs: Path) -> None:
    ramped = read_log(runs / "calm_ramp_zero2" / "log.jsonl")
    tokens = ramped.series("tokens")[1]
    sizes = [round((after - before) / 64) for before, after in zip([0.0, *tokens], tokens, strict=False)]
    assert sizes == [4, 4, 4, 4, 8, 8, 8, 8, 8, 8]
    for name in ("calm_ramp_zero2", "calm_ramp_pipe2"):
        assert losses(runs / name) == pytest.approx(losses(runs / "calm_ramp_zero0"), rel=1e-5)
        assert norms(runs / name) == pytest.approx(norms(runs / "calm_ramp_zero0"), rel=1e-4)


def test_latents_as_input_train_too(runs: Path) -> None:
    curve = losses(runs / "calm_latents")
    assert sum(curve[5:]) < sum(curve[:5])
    assert not any("embedding.tokens" in name for name in weights(runs / "calm_latents"))


def test_the_run_folder_stands_for_itself(runs: Path) -> None:
    run = runs / "calm_zero3"
    assert (run / "config.yaml").read_text() == (run / "checkpoints" / "step_00000010" / "config.yaml").read_text()
    assert (run / "tokenizer" / "tokenizer.json").is_file()
    assert not list(run.rglob("*.partial"))
