"""Loading a trained model: the same weights come back, and what cannot be loaded is told in one message."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from calm_megatron.checkpoint.load import find_checkpoint, load_autoencoder, load_calm, saved_config, step_of
from calm_megatron.checkpoint.progress import Progress
from calm_megatron.checkpoint.store import CheckpointStore
from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import AutoencoderConfig, CalmConfig, RunConfig
from calm_megatron.model.autoencoder import Autoencoder, FrozenAutoencoder
from calm_megatron.model.calm import Calm
from calm_megatron.model.initialise import initialise
from calm_megatron.parallel.grid import Grid

ConfigOf = Callable[..., RunConfig]


@pytest.fixture
def autoencoder_run(grid: Grid, config_of: ConfigOf, engine: Any, tmp_path: Path) -> Path:
    """The folder of a run with an autoencoder at step 3."""
    config = config_of(run__directory=str(tmp_path / "ae"))
    assert isinstance(config.model, AutoencoderConfig)
    engine.module = Autoencoder(config.model)
    initialise(engine.module, seed=1, std=0.3)
    CheckpointStore(config, grid).save(engine, Progress(3, 3, 96))
    return tmp_path / "ae"


@pytest.fixture
def calm_run(grid: Grid, config_of: ConfigOf, engine: Any, autoencoder_run: Path, tmp_path: Path) -> Path:
    """The folder of a run with a CALM on that autoencoder."""
    model = {"type": "calm", "autoencoder": str(autoencoder_run), "num_layers": 1, "num_attention_heads": 2}
    config = config_of(model, run__directory=str(tmp_path / "calm"))
    assert isinstance(config.model, CalmConfig)
    engine.module = Calm(config.model, FrozenAutoencoder(load_autoencoder(autoencoder_run)))
    initialise(engine.module, seed=1, std=0.3)
    CheckpointStore(config, grid).save(engine, Progress(4, 4, 128))
    return tmp_path / "calm"


def weights_file(run: Path) -> Path:
    return find_checkpoint(run) / "weights.safetensors"


def test_an_autoencoder_comes_back(autoencoder_run: Path, engine: Any) -> None:
    for path in (autoencoder_run, str(autoencoder_run), find_checkpoint(autoencoder_run)):
        module = load_autoencoder(path)
        assert not module.training
        for name, weight in module.named_parameters():
            assert torch.equal(weight, dict(engine.module.named_parameters())[name])
    assert step_of(find_checkpoint(autoencoder_run)) == 3
    assert saved_config(autoencoder_run).run.directory == str(autoencoder_run)


def test_calm_comes_back_with_its_autoencoder(calm_run: Path, autoencoder_run: Path, engine: Any) -> None:
    model = load_calm(calm_run)
    assert not model.training
    for name, weight in model.named_parameters():
        assert torch.equal(weight, dict(engine.module.named_parameters())[name])
    frozen = model.autoencoder.state_dict()
    assert all(torch.equal(frozen[name], weight) for name, weight in load_file(weights_file(autoencoder_run)).items())


def test_an_autoencoder_that_was_moved_can_be_named(calm_run: Path, autoencoder_run: Path) -> None:
    moved = autoencoder_run.with_name("moved")
    autoencoder_run.rename(moved)
    with pytest.raises(UserError, match="there is no checkpoint") as caught:
        load_calm(calm_run)
    assert str(autoencoder_run) in str(caught.value)
    assert load_calm(calm_run, autoencoder=moved).config.num_layers == 1


def test_bf16_weights_are_loaded_as_fp32(autoencoder_run: Path) -> None:
    path = weights_file(autoencoder_run)
    weights = load_file(path)
    save_file({name: weight.bfloat16() for name, weight in weights.items()}, path)
    for name, weight in load_autoencoder(autoencoder_run).named_parameters():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, weights[name].bfloat16().float())


def test_a_cut_file_is_refused(autoencoder_run: Path) -> None:
    path = weights_file(autoencoder_run)
    for size in (len(path.read_bytes()) - 100, 20, 0):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(UserError, match="the weights cannot be read") as caught:
            load_autoencoder(autoencoder_run)
        assert str(path) in str(caught.value)


def test_a_folder_without_checkpoint_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=r"there is no checkpoint(.|\n)*name a run folder"):
            load_autoencoder(folder)


def test_the_wrong_kind_of_model_is_refused(calm_run: Path, autoencoder_run: Path) -> None:
    with pytest.raises(UserError, match="a model of type 'calm', not an autoencoder"):
        load_autoencoder(calm_run)
    with pytest.raises(UserError, match="a model of type 'autoencoder', not a CALM"):
        load_calm(autoencoder_run)


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape"])
def test_weights_that_do_not_fit_are_named(autoencoder_run: Path, damage: str) -> None:
    path = weights_file(autoencoder_run)
    weights = load_file(path)
    if damage == "missing":
        del weights["decoder.norm.weight"]
    elif damage == "unknown":
        weights["decoder.norm.wieght"] = torch.zeros(1)
    else:
        weights["decoder.norm.weight"] = torch.zeros(1)
    save_file(weights, path)
    with pytest.raises(UserError, match="do not fit the saved config") as caught:
        load_autoencoder(autoencoder_run)
    assert ("wieght" if damage == "unknown" else "decoder.norm.weight") in str(caught.value)


def test_a_folder_of_another_name_has_no_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its name should be step_<number>"):
        step_of(tmp_path)
