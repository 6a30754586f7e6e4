"""Checkpoints appear whole or not at all, old ones go, and a run resumes only what is its own and undamaged."""

import errno
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from calm_megatron.checkpoint.pieces import KINDS
from calm_megatron.checkpoint.progress import Progress
from calm_megatron.checkpoint.store import (
    CheckpointStore,
    Unreadable,
    check_same_run,
    checkpoints_of,
    newest_checkpoint,
    published,
    step_of,
)
from calm_megatron.config.errors import UserError
from calm_megatron.config.files import load_run
from calm_megatron.config.schema import RunConfig
from calm_megatron.parallel.grid import Grid
from tests.checkpoint.damage import DAMAGES, files_of_at_most
from tests.small_engine import SmallEngine, progress_at, save

ConfigOf = Callable[..., RunConfig]
FILES = ["config.yaml", "manifest.json", "progress.json", "rank_00000.safetensors"]

both_ways = pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "sync"])


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def store_of(grid: Grid, config_of: ConfigOf, **checkpoint: object) -> CheckpointStore:
    return CheckpointStore(config_of(**{f"checkpoint__{key}": value for key, value in checkpoint.items()}), grid)


def test_a_checkpoint_holds_all_that_is_said(
    grid: Grid, config_of: ConfigOf, engine: SmallEngine, tmp_path: Path
) -> None:
    store = CheckpointStore(config_of(), grid, {"tokenizer": "12ab"})
    folder = save(store, engine, 5)
    assert folder == tmp_path / "run" / "checkpoints" / "step_00000005"
    assert names_in(folder) == FILES
    assert load_run([folder / "config.yaml"]) == store.config
    progress = {"step": 5, "consumed_samples": 40, "consumed_tokens": 1280}
    assert json.loads((folder / "progress.json").read_text()).items() >= progress.items()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["layout"] == {
        "world_size": 1,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "data_parallel_size": 1,
        "zero_stage": 0,
        "precision": "fp32",
    }
    assert manifest["engine"] == engine.scalars() and manifest["fingerprints"] == {"tokenizer": "12ab"}
    sizes = {entry["name"]: entry["bytes"] for entry in manifest["files"]}
    assert sizes == {name: (folder / name).stat().st_size for name in FILES if name != "manifest.json"}
    shard = load_file(folder / "rank_00000.safetensors")
    assert sorted(shard) == sorted(f"{kind}/{name}" for kind in KINDS for name in ("weight", "bias"))
    assert torch.equal(shard["weight/weight"].view(2, 3), engine.module.weight)
    assert torch.equal(shard["exp_avg_sq/bias"], engine.moments["exp_avg_sq"]["bias"])
    assert (store.directory / "latest").read_text() == "step_00000005\n"


@both_ways
def test_resuming_restores_engine_and_place(
    grid: Grid, config_of: ConfigOf, engine: SmallEngine, asynchronous: bool
) -> None:
    store = store_of(grid, config_of, async_save=asynchronous)
    save(store, engine, 5)
    other = SmallEngine(nn.Linear(3, 2))
    other.updates = 0
    assert store.resume(other) == progress_at(5)
    assert torch.equal(other.module.weight, engine.module.weight)
    assert torch.equal(other.moments["exp_avg"]["bias"], engine.moments["exp_avg"]["bias"])
    assert other.updates == engine.updates


def test_a_run_without_checkpoints_starts_anew(store: CheckpointStore, engine: SmallEngine) -> None:
    assert store.resume(engine) is None
    store.directory.mkdir(parents=True)
    assert store.resume(engine) is None
    assert store.poll() is None and store.finish() is None


def test_the_newest_is_resumed_and_the_last_are_kept(grid: Grid, config_of: ConfigOf, engine: SmallEngine) -> None:
    store = store_of(grid, config_of, keep_last=2)
    for step in (1, 2, 10, 9_999, 12_345, 123_456_789):
        save(store, engine, step)
        assert store.resume(engine) == progress_at(step)
    assert names_in(store.directory) == ["latest", "step_00012345", "step_123456789"]
    assert (store.directory / "latest").read_text() == "step_123456789\n"


def test_every_so_many_are_kept_for_good(grid: Grid, config_of: ConfigOf, engine: SmallEngine) -> None:
    store = store_of(grid, config_of, keep_last=1, keep_every=4)
    for step in range(2, 16, 2):
        save(store, engine, step)
    assert [step_of(path) for path in published(store.directory)] == [4, 8, 12, 14]


@both_ways
def test_what_is_published_is_told_with_its_cost(
    grid: Grid, config_of: ConfigOf, engine: SmallEngine, asynchronous: bool
) -> None:
    store = store_of(grid, config_of, async_save=asynchronous)
    saved = store.begin(engine, progress_at(5))
    assert (saved is None) == asynchronous
    if saved is None:
        again = store.begin(engine, progress_at(6))  # which publishes the first one
        assert again is not None and again.path.name == "step_00000005"
        while saved is None:
            saved = store.poll()
        assert saved.path.name == "step_00000006"
    assert saved.bytes == (saved.path / "rank_00000.safetensors").stat().st_size
    assert 0 < saved.stall <= saved.seconds
    assert store.finish() is None


def test_nothing_is_under_the_final_name_before_all_is_written(store: CheckpointStore, engine: SmallEngine) -> None:
    final = store.directory / "step_00000005"
    stop, half = threading.Event(), []

    def watch() -> None:
        while not stop.is_set():
            if final.exists() and names_in(final) != FILES:
                half.append(names_in(final))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        store.begin(engine, progress_at(5))
        assert names_in(store.directory) == [".step_00000005.partial"]
        store.finish()
    finally:
        stop.set()
        watcher.join()
    assert final.exists() and not half


def test_later_steps_do_not_reach_a_checkpoint_that_is_being_written(
    store: CheckpointStore, engine: SmallEngine
) -> None:
    weight, moment = engine.module.weight.detach().clone(), engine.moments["exp_avg"]["weight"].clone()
    store.begin(engine, progress_at(5))
    nn.init.zeros_(engine.module.weight)
    engine.moments["exp_avg"]["weight"].zero_()
    store.finish()
    store.resume(engine)
    assert torch.equal(engine.module.weight, weight)
    assert torch.equal(engine.moments["exp_avg"]["weight"], moment)


class Copies(TorchDispatchMode):
    """Counts the copies that this thread makes of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        self.count += func in (aten.copy_.default, aten._to_copy.default, aten.clone.default)
        return func(*args, **(kwargs or {}))


@both_ways
def test_only_what_is_written_in_the_background_is_copied(
    grid: Grid, config_of: ConfigOf, engine: SmallEngine, asynchronous: bool
) -> None:
    store = store_of(grid, config_of, async_save=asynchronous)
    with Copies() as copies:
        store.begin(engine, progress_at(5))
    store.finish()
    assert copies.count == (len(KINDS) * 2 if asynchronous else 0)


@pytest.mark.parametrize("cut", [False, True], ids=["before the manifest", "within the shard"])
def test_what_a_killed_save_leaves_is_ignored_and_cleaned(
    store: CheckpointStore, grid: Grid, engine: SmallEngine, cut: bool
) -> None:
    save(store, engine, 5)
    aside = store.directory / ".step_00000006.partial"
    killed = CheckpointStore(store.config, grid)
    killed.begin(engine, progress_at(6))
    while killed._pending is not None and not killed._pending.entry.done():
        time.sleep(0.01)
    assert names_in(aside) == ["rank_00000.safetensors"]
    if cut:
        DAMAGES["cut"](aside / "rank_00000.safetensors")
    assert newest_checkpoint(store.directory) == store.directory / "step_00000005"
    assert store.resume(engine) == progress_at(5)
    save(store, engine, 7)
    assert names_in(store.directory) == ["latest", "step_00000005", "step_00000007"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_told_of_and_left_out(
    store: CheckpointStore, engine: SmallEngine, name: str, damage: str
) -> None:
    save(store, engine, 5)
    weight = engine.module.weight.detach().clone()
    nn.init.zeros_(engine.module.weight)
    DAMAGES[damage](save(store, engine, 6) / name)
    told: list[str] = []
    assert store.resume(engine, told.append) == progress_at(5)
    assert torch.equal(engine.module.weight, weight)
    assert len(told) == 1 and told[0].startswith("step_00000006 is damaged and left out") and name in told[0]
    assert names_in(store.directory) == ["damaged_step_00000006", "latest", "step_00000005"]
    assert (store.directory / "latest").read_text() == "step_00000005\n"
    # The same step can be saved, and found damaged, again.
    DAMAGES[damage](save(store, engine, 6) / name)
    assert store.resume(engine) == progress_at(5)
    assert {"damaged_step_00000006", "damaged_step_00000006_2"} <= set(names_in(store.directory))


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(
    store: CheckpointStore, engine: SmallEngine
) -> None:
    DAMAGES["cut"](save(store, engine, 5) / "rank_00000.safetensors")
    DAMAGES["deleted"](save(store, engine, 6) / "progress.json")
    told: list[str] = []
    with pytest.raises(UserError, match="no checkpoint of the run is whole") as caught:
        store.resume(engine, told.append)
    assert "step_00000005: rank_00000.safetensors has" in str(caught.value)
    assert "step_00000006: progress.json cannot be read: No such file" in str(caught.value)
    assert told == [] and names_in(store.directory) == ["latest", "step_00000005", "step_00000006"]
    with pytest.raises(UserError, match="no checkpoint of the run is whole"):  # nor does it the next time
        store.resume(engine)


@pytest.mark.parametrize("name", ["rank_00000.safetensors", "manifest.json"])
def test_what_cannot_be_read_now_is_not_taken_for_damaged(
    store: CheckpointStore, engine: SmallEngine, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount that fails for a while must not cost the checkpoints; a disk of which that can be had is not at hand."""
    save(store, engine, 5)
    file = save(store, engine, 6) / name
    plain = {"open": Path.open, "read_text": Path.read_text, "read_bytes": Path.read_bytes}

    def failing(method: str) -> Callable[..., object]:
        def read(path: Path, *words: object, **options: object) -> object:
            if path == file:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return plain[method](path, *words, **options)  # type: ignore[operator]

        return read

    with monkeypatch.context() as patched:
        for method in plain:
            patched.setattr(Path, method, failing(method))
        with pytest.raises(Unreadable, match="Input/output error") as caught:
            store.resume(engine)
    assert caught.value.exit_code == 1
    assert names_in(store.directory) == ["latest", "step_00000005", "step_00000006"]
    assert store.resume(engine) == progress_at(6)


@both_ways
@pytest.mark.parametrize(("width", "limit"), [(2, 1200), (400, 4000)], ids=["at the config", "at the shard"])
def test_a_full_disk_is_one_message_and_costs_nothing_else(
    grid: Grid, config_of: ConfigOf, asynchronous: bool, width: int, limit: int
) -> None:
    store = store_of(grid, config_of, async_save=asynchronous)
    engine = SmallEngine(nn.Linear(1, width))
    save(store, engine, 5)
    with pytest.raises(UserError, match="the checkpoint could not be written") as caught, files_of_at_most(limit):
        store.begin(engine, progress_at(6))
        assert asynchronous, "what is not written in the background fails at once"
        while store.poll() is None:
            time.sleep(0.01)
    assert "File too large" in str(caught.value) and "earlier checkpoints are intact" in str(caught.value)
    assert ("rank 0: " in str(caught.value)) == (width == 400)
    assert names_in(store.directory) == ["latest", "step_00000005"]
    assert store.resume(engine) == progress_at(5)
    assert save(store, engine, 6) == newest_checkpoint(store.directory)
    assert store.resume(engine) == progress_at(6)


def test_a_failed_save_is_told_by_the_next_one_at_the_latest(store: CheckpointStore) -> None:
    engine = SmallEngine(nn.Linear(1, 400))
    with files_of_at_most(4000):
        store.begin(engine, progress_at(5))
        with pytest.raises(UserError, match="the checkpoint could not be written: rank 0: "):
            store.begin(engine, progress_at(6))
    assert save(store, engine, 6).name == "step_00000006"


def test_a_step_saved_again_replaces_the_old_one(store: CheckpointStore, engine: SmallEngine) -> None:
    save(store, engine, 5)
    nn.init.constant_(engine.module.weight, 7.0)
    folder = save(store, engine, 5)
    assert load_file(folder / "rank_00000.safetensors")["weight/weight"].unique().tolist() == [7.0]
    assert names_in(store.directory) == ["latest", "step_00000005"]


@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        ({"latent_size": 6}, {}, "model.latent_size was 4 and is now 6"),
        ({"dropout": 0.3}, {}, "model.dropout was 0.15 and is now 0.3"),
        ({}, {"run__seed": 2}, "run.seed was 1234 and is now 2"),
        ({}, {"data__seq_length": 64}, "data.seq_length was 32 and is now 64"),
        ({}, {"data__data_path": "other"}, "data.data_path was 'corpus' and is now 'other'"),
    ],
)
def test_checkpoints_of_another_run_are_refused(
    store: CheckpointStore,
    engine: SmallEngine,
    grid: Grid,
    config_of: ConfigOf,
    model: dict[str, object],
    changes: dict[str, object],
    words: str,
) -> None:
    save(store, engine, 5)
    with pytest.raises(UserError) as caught:
        CheckpointStore(config_of(model, **changes), grid).resume(engine)
    assert words in str(caught.value)
    assert "step_00000005" in str(caught.value) and "set run.directory to a new folder" in str(caught.value)


def test_a_checkpoint_of_another_kind_of_model_is_refused(
    store: CheckpointStore, engine: SmallEngine, grid: Grid, config_of: ConfigOf
) -> None:
    save(store, engine, 5)
    calm = {"type": "calm", "autoencoder": "a", "num_layers": 1, "num_attention_heads": 2}
    with pytest.raises(UserError, match=r"model.type was 'autoencoder' and is now 'calm'"):
        CheckpointStore(config_of(calm), grid).resume(engine)


@pytest.mark.parametrize("changed", [["tokenizer"], ["training data", "autoencoder"]])
def test_changed_sources_are_refused_unless_accepted(
    grid: Grid, config_of: ConfigOf, engine: SmallEngine, changed: list[str]
) -> None:
    before = {"training data": "1a", "tokenizer": "2b", "autoencoder": "3c"}
    save(CheckpointStore(config_of(), grid, before), engine, 5)
    assert CheckpointStore(config_of(), grid, before).resume(engine) == progress_at(5)
    after = before | dict.fromkeys(changed, "ff")
    with pytest.raises(UserError, match=f"{' and '.join(changed)} changed: the run would go on with others") as caught:
        CheckpointStore(config_of(), grid, after).resume(engine)
    assert "checkpoint.accept_changed_sources=true" in str(caught.value)
    accepting = config_of(checkpoint__accept_changed_sources=True)
    assert CheckpointStore(accepting, grid, after).resume(engine) == progress_at(5)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer__lr": 1e-5, "train__train_iters": 1000, "logging__log_interval": 1},
        {"parallel__zero_stage": 2, "train__micro_batch_size": 4, "train__global_batch_size": 8},
        {"parallel__zero_stage": 1, "train__precision": "bf16"},
    ],
    ids=["settings", "layout", "precision"],
)
def test_what_changes_neither_data_nor_model_may_change(
    store: CheckpointStore, engine: SmallEngine, grid: Grid, config_of: ConfigOf, changes: dict[str, object]
) -> None:
    save(store, engine, 5)
    later = config_of(**changes)
    check_same_run(later, store.directory / "step_00000005")
    assert CheckpointStore(later, grid).resume(engine) == progress_at(5)


def test_checkpoints_lie_in_the_run_folder(tmp_path: Path) -> None:
    assert checkpoints_of(tmp_path) == tmp_path / "checkpoints"
    assert newest_checkpoint(tmp_path / "checkpoints") is None


def test_a_folder_of_another_name_has_no_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its name should be step_<number>"):
        step_of(tmp_path)


def test_progress_counts_samples_and_tokens(tmp_path: Path) -> None:
    progress = Progress().advance(8, 32).advance(4, 32)
    assert progress == Progress(step=2, consumed_samples=12, consumed_tokens=384)
    progress.save(tmp_path / "progress.json")
    assert Progress.load(tmp_path / "progress.json") == progress
