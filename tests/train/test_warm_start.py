"""Runs start with the weights of others: of any layout, given away and taken in again, in any layout."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from calm_megatron.checkpoint.load import find_checkpoint, saved_config, saved_state, whole_weights
from calm_megatron.checkpoint.manifest import Manifest
from calm_megatron.checkpoint.warm_start import open_weights
from calm_megatron.config.errors import UserError
from calm_megatron.release.exporting import ExportRequest, export_official
from calm_megatron.release.importing import import_official
from calm_megatron.telemetry.run_log import read_log
from tests.small_runs import AR, AUTOENCODER, CALM, FLOW, ROOT, TRAINED_AUTOENCODER, settings
from tests.train.launches import LAYOUTS_WORKER, Program, launch

Launch = Callable[..., None]
QUICK = {"train__train_iters": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, small_corpus: Path, program: Program) -> Path:
    """Runs at one rank, what is given away of them, and runs at two ranks that start from it."""
    folder = tmp_path_factory.mktemp("warm")

    def job(name: str, base: list[str], **changes: object) -> list[str]:
        if base in (CALM, FLOW):
            changes = {"model__autoencoder": folder / "autoencoder", **changes}
        return settings(base, run__directory=folder / name, data__data_path=small_corpus, **(QUICK | changes))

    def train(ranks: int, *jobs: list[str]) -> None:
        launch(program, LAYOUTS_WORKER, folder / f"jobs_{ranks}.json", jobs, ranks, words=["record"], timeout=300)

    names = {"calm": CALM, "flow": FLOW, "ar": AR, "autoencoder": AUTOENCODER}
    train(
        1,
        job("autoencoder", TRAINED_AUTOENCODER, train__train_iters=150),
        *(job(name, base) for name, base in names.items() if name != "autoencoder"),
        # The reference: the same weights, taken over by one rank from the run itself.
        *(job(f"{name}_on", base, checkpoint__pretrained_checkpoint=folder / name) for name, base in names.items()),
    )
    for name in names:
        export_official(folder / name, folder / f"{name}_official", ExportRequest())
        import_official(folder / f"{name}_official", folder / f"{name}_imported")
    tensor2 = {
        "parallel__tensor_model_parallel_size": 2,
        "parallel__sequence_parallel": True,
        "parallel__zero_stage": 1,
        "train__micro_batch_size": 4,
    }
    start = "checkpoint__pretrained_checkpoint"
    train(
        2,
        job("calm_tensor2", CALM, **tensor2, **{start: folder / "calm_imported"}),
        job("calm_zero3", CALM, parallel__zero_stage=3, **{start: folder / "calm"}),
        job(
            "flow_pipe2",
            FLOW,
            parallel__pipeline_model_parallel_size=2,
            parallel__zero_stage=1,
            model__autoencoder=folder / "flow_official",
            **{start: folder / "flow_official"},
        ),
        job("ar_tensor2", AR, **tensor2, **{start: folder / "ar_official"}),
        job("autoencoder_zero2", AUTOENCODER, parallel__zero_stage=2, **{start: folder / "autoencoder_official"}),
    )
    return folder


CASES = [
    ("calm", "calm_tensor2"),
    ("calm", "calm_zero3"),
    ("flow", "flow_pipe2"),
    ("ar", "ar_tensor2"),
    ("autoencoder", "autoencoder_zero2"),
]


def losses(run: Path) -> list[float]:
    return read_log(run / "log.jsonl").series("loss")[1]


@pytest.mark.parametrize(("name", "started"), CASES)
def test_a_run_starts_with_the_weights_and_nothing_else(runs: Path, name: str, started: str) -> None:
    ours, theirs = whole_weights(find_checkpoint(runs / name)), runs / started / "initial"
    found = saved_state(find_checkpoint(theirs))
    assert set(found.names()) == set(ours)
    for weight, value in ours.items():
        assert torch.equal(found.whole("weight", weight), value), weight
        assert not found.whole("exp_avg", weight).any() and not found.whole("exp_avg_sq", weight).any()
    events = [event.message for event in read_log(runs / started / "log.jsonl").events if event.kind == "weights"]
    assert len(events) == 1 and events[0].startswith("the first are those of ")


@pytest.mark.parametrize(("name", "started"), CASES)
def test_the_next_batch_has_the_same_loss_in_each_layout(runs: Path, name: str, started: str) -> None:
    expected, first = losses(runs / f"{name}_on"), losses(runs / started)
    assert first == pytest.approx(expected, rel=1e-5)
    if name != "autoencoder":  # which trained on from the same batches
        assert first[0] != pytest.approx(losses(runs / name)[0], rel=1e-5)


def test_a_run_that_has_a_checkpoint_goes_on_from_it(runs: Path, small_corpus: Path, program: Program) -> None:
    overrides = settings(
        CALM,
        run__directory=runs / "calm_on",
        data__data_path=small_corpus,
        model__autoencoder=runs / "autoencoder",
        checkpoint__pretrained_checkpoint=runs / "calm",
        train__train_iters=3,
    )
    (runs / "goes_on.yaml").write_text("run: {seed: 1234}\n")
    done = program(ROOT / "pretrain_calm.py", runs / "goes_on.yaml", *overrides)
    assert done.returncode == 0, done.stderr
    kinds = [event.kind for event in read_log(runs / "calm_on" / "log.jsonl").events]
    assert kinds.count("weights") == 1 and kinds.count("resume") == 1


def test_no_run_goes_on_from_weights_alone(runs: Path, small_corpus: Path, program: Program) -> None:
    config = runs / "calm_imported" / "config.yaml"
    data = [f"data.data_path={small_corpus}", "data.split='80,10,10'"]
    done = program(ROOT / "pretrain_calm.py", config, *data)
    assert done.returncode == 2
    assert "data.data_path was 'unknown'" in done.stderr or "holds weights alone" in done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rotary_base": 500.0}, r"model.rotary_base was 10000.0 and is 500.0"),
        ({"num_query_groups": None}, r"model.num_query_groups was 2 and is 4"),
        (
            {"hidden_size": 64, "num_layers": 3},
            r"(?s)model.num_layers was 2 and is 3.*model.hidden_size was 32 and is 64",
        ),
    ],
)
def test_weights_of_another_model_are_refused(runs: Path, change: dict[str, object], message: str) -> None:
    for place in ("calm", "calm_official", "calm_imported"):
        model = saved_config(runs / "calm").model
        with pytest.raises(UserError, match=message):
            open_weights(runs / place, replace(model, **change), {})  # type: ignore[arg-type]


def test_weights_of_another_autoencoder_or_tokenizer_are_refused(runs: Path) -> None:
    model = saved_config(runs / "calm").model
    same = Manifest.load(find_checkpoint(runs / "calm")).fingerprints
    for place in ("calm", "calm_official", "calm_imported"):
        assert open_weights(runs / place, model, same)
        other = {**same, "autoencoder": "0"}
        with pytest.raises(UserError, match="trained with another autoencoder"):
            open_weights(runs / place, model, other)
        assert open_weights(runs / place, model, other, accept_changed_sources=True)
    with pytest.raises(UserError, match="trained with another tokenizer"):
        open_weights(runs / "calm", model, {**same, "tokenizer": "0"})


@pytest.mark.slow
def test_eight_ranks_and_back(tmp_path: Path, small_corpus: Path, program: Program) -> None:
    """TP 2 x PP 2 x DP 2 trains five steps; what is given away and taken in has the same next loss elsewhere."""

    def job(name: str, base: list[str], **changes: object) -> list[str]:
        return settings(base, run__directory=tmp_path / name, data__data_path=small_corpus, **changes)

    def train(ranks: int, *jobs: list[str]) -> None:
        launch(program, LAYOUTS_WORKER, tmp_path / "jobs.json", jobs, ranks, words=["record"], timeout=900)

    autoencoder = {"model__autoencoder": tmp_path / "autoencoder"}
    whole = {
        "parallel__tensor_model_parallel_size": 2,
        "parallel__pipeline_model_parallel_size": 2,
        "parallel__zero_stage": 1,
    }
    train(1, job("autoencoder", TRAINED_AUTOENCODER))
    train(8, job("calm", CALM, train__train_iters=5, **whole, **autoencoder))
    export_official(tmp_path / "calm", tmp_path / "official", ExportRequest())
    import_official(tmp_path / "official", tmp_path / "imported")
    start = {"checkpoint__pretrained_checkpoint": tmp_path / "calm", "train__train_iters": 1, **autoencoder}
    train(8, job("same_layout", CALM, **start, **whole))
    for place in ("imported", "official"):
        start["checkpoint__pretrained_checkpoint"] = tmp_path / place
        train(2, job(f"from_{place}", CALM, **start, parallel__zero_stage=2))
        assert losses(tmp_path / f"from_{place}") == pytest.approx(losses(tmp_path / "same_layout"), rel=1e-5)
