"""Checkpoints appear whole or not at all, old ones go, and a run resumes only what is its own."""

import json
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from calm_megatron.checkpoint.progress import Progress
from calm_megatron.checkpoint.store import CheckpointStore, check_same_run, checkpoints_of, newest_checkpoint
from calm_megatron.config.errors import UserError
from calm_megatron.config.files import load_run
from calm_megatron.config.schema import RunConfig
from calm_megatron.parallel.grid import Grid

ConfigOf = Callable[..., RunConfig]


def progress_at(step: int) -> Progress:
    return Progress(step, step * 8, step * 8 * 32)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to write more into one file, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_holds_all_that_is_said(store: CheckpointStore, engine: Any, tmp_path: Path) -> None:
    folder = store.save(engine, progress_at(5))
    assert folder == tmp_path / "run" / "checkpoints" / "step_00000005"
    assert names_in(folder) == ["config.yaml", "engine", "layout.json", "progress.json", "weights.safetensors"]
    assert load_run([folder / "config.yaml"]) == store.config
    assert json.loads((folder / "progress.json").read_text()) == {
        "step": 5,
        "consumed_samples": 40,
        "consumed_tokens": 1280,
    }
    assert json.loads((folder / "layout.json").read_text())["zero_stage"] == 0
    weights = load_file(folder / "weights.safetensors")
    assert torch.equal(weights["weight"], engine.module.weight)


def test_resuming_restores_engine_and_place(store: CheckpointStore, engine: Any) -> None:
    engine.momentum["bias"] += 3
    store.save(engine, progress_at(5))
    weight = engine.module.weight.detach().clone()
    nn.init.zeros_(engine.module.weight)
    engine.momentum["bias"].zero_()
    assert store.resume(engine) == progress_at(5)
    assert torch.equal(engine.module.weight, weight)
    assert torch.equal(engine.momentum["bias"], torch.full((2,), 3.0))


def test_a_run_without_checkpoints_starts_anew(store: CheckpointStore, engine: Any) -> None:
    assert store.resume(engine) is None
    store.directory.mkdir(parents=True)
    assert store.resume(engine) is None


def test_the_newest_is_resumed_and_the_last_are_kept(grid: Grid, config_of: ConfigOf, engine: Any) -> None:
    store = CheckpointStore(config_of(checkpoint__keep_last=2), grid)
    for step in (1, 2, 10, 9_999, 12_345):
        store.save(engine, progress_at(step))
        assert store.resume(engine) == progress_at(step)
    assert names_in(store.directory) == ["step_00009999", "step_00012345"]


def test_nothing_is_under_the_final_name_before_all_is_written(store: CheckpointStore, engine: Any) -> None:
    final = store.directory / "step_00000005"
    seen: list[bool] = []
    whole_weights = engine.whole_weights

    def watched() -> dict[str, torch.Tensor]:
        seen.append(final.exists())
        return whole_weights()

    engine.whole_weights = watched
    stop, half = threading.Event(), []

    def watch() -> None:
        while not stop.is_set():
            if final.exists() and len(list(final.iterdir())) < 5:
                half.append(names_in(final))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        store.save(engine, progress_at(5))
    finally:
        stop.set()
        watcher.join()
    assert seen == [False] and final.exists() and not half


def test_what_a_killed_save_leaves_is_ignored_and_cleaned(store: CheckpointStore, engine: Any) -> None:
    store.save(engine, progress_at(5))
    save = engine.save

    def killed(directory: Path) -> None:
        save(directory)
        (directory / "half").write_text("written")
        raise KeyboardInterrupt

    engine.save = killed
    with pytest.raises(KeyboardInterrupt):
        store.save(engine, progress_at(6))
    assert names_in(store.directory) == [".step_00000006.partial", "step_00000005"]
    assert newest_checkpoint(store.directory) == store.directory / "step_00000005"
    engine.save = save
    assert store.resume(engine) == progress_at(5)
    store.save(engine, progress_at(6))
    assert names_in(store.directory) == ["step_00000005", "step_00000006"]
    assert "half" not in names_in(store.directory / "step_00000006")


@pytest.mark.parametrize("size", [10, 1000], ids=["at the config", "at the weights"])
def test_a_full_disk_is_one_message_and_costs_nothing_else(store: CheckpointStore, engine: Any, size: int) -> None:
    store.save(engine, progress_at(5))
    engine.save = lambda directory: None  # the engine's own files are DeepSpeed's business
    engine.whole_weights = lambda: {"weight": torch.zeros(size)}
    with pytest.raises(UserError, match="the checkpoint could not be written") as caught, files_of_at_most(700):
        store.save(engine, progress_at(6))
    assert "earlier checkpoints are intact" in str(caught.value)
    assert newest_checkpoint(store.directory) == store.directory / "step_00000005"


def test_a_step_saved_again_replaces_the_old_one(store: CheckpointStore, engine: Any) -> None:
    store.save(engine, progress_at(5))
    nn.init.constant_(engine.module.weight, 7.0)
    folder = store.save(engine, progress_at(5))
    assert load_file(folder / "weights.safetensors")["weight"].unique().tolist() == [7.0]


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
    engine: Any,
    grid: Grid,
    config_of: ConfigOf,
    model: dict[str, object],
    changes: dict[str, object],
    words: str,
) -> None:
    store.save(engine, progress_at(5))
    with pytest.raises(UserError) as caught:
        CheckpointStore(config_of(model, **changes), grid).resume(engine)
    assert words in str(caught.value)
    assert "step_00000005" in str(caught.value) and "set run.directory to a new folder" in str(caught.value)


def test_a_checkpoint_of_another_kind_of_model_is_refused(
    store: CheckpointStore, engine: Any, grid: Grid, config_of: ConfigOf
) -> None:
    store.save(engine, progress_at(5))
    calm = {"type": "calm", "autoencoder": "a", "num_layers": 1, "num_attention_heads": 2}
    with pytest.raises(UserError, match=r"model.type was 'autoencoder' and is now 'calm'"):
        CheckpointStore(config_of(calm), grid).resume(engine)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parallel__zero_stage": 2}, "'zero_stage': 2"),
        ({"parallel__zero_stage": 1, "train__precision": "bf16"}, "'precision': 'bf16'"),
    ],
)
def test_another_layout_is_refused(
    store: CheckpointStore, engine: Any, grid: Grid, config_of: ConfigOf, changes: dict[str, object], words: str
) -> None:
    store.save(engine, progress_at(5))
    with pytest.raises(UserError, match="resume with the layout of the checkpoint") as caught:
        CheckpointStore(config_of(**changes), grid).resume(engine)
    assert "'zero_stage': 0" in str(caught.value) and words in str(caught.value)


def test_another_number_of_ranks_is_refused(
    store: CheckpointStore, engine: Any, grid: Grid, config_of: ConfigOf
) -> None:
    store.save(engine, progress_at(5))
    with pytest.raises(UserError, match="'world_size': 1") as caught:
        CheckpointStore(config_of(), replace(grid, world_size=4)).resume(engine)
    assert "'world_size': 4" in str(caught.value)


def test_what_does_not_change_the_data_or_the_model_may_change(
    store: CheckpointStore, engine: Any, grid: Grid, config_of: ConfigOf
) -> None:
    store.save(engine, progress_at(5))
    later = config_of(optimizer__lr=1e-5, train__train_iters=1000, logging__log_interval=1)
    check_same_run(later, store.directory / "step_00000005")
    assert CheckpointStore(later, grid).resume(engine) == progress_at(5)


def test_checkpoints_lie_in_the_run_folder(tmp_path: Path) -> None:
    assert checkpoints_of(tmp_path) == tmp_path / "checkpoints"
    assert newest_checkpoint(tmp_path / "checkpoints") is None


def test_progress_counts_samples_and_tokens(tmp_path: Path) -> None:
    progress = Progress().advance(8, 32).advance(4, 32)
    assert progress == Progress(step=2, consumed_samples=12, consumed_tokens=384)
    progress.save(tmp_path / "progress.json")
    assert Progress.load(tmp_path / "progress.json") == progress
