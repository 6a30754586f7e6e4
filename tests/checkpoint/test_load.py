"""Loading a trained model: the same weights come back, and what cannot be loaded is told in one message."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from calm_megatron.checkpoint.load import (
    demand_tokenizer,
    find_checkpoint,
    load_autoencoder,
    load_calm,
    saved_config,
    whole_weights,
)
from calm_megatron.checkpoint.store import CheckpointStore, step_of
from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import AutoencoderConfig, CalmConfig, RunConfig
from calm_megatron.model.autoencoder import Autoencoder, FrozenAutoencoder
from calm_megatron.model.calm import Calm
from calm_megatron.model.initialise import initialise
from calm_megatron.parallel.grid import Grid
from tests.checkpoint.damage import DAMAGES
from tests.small_engine import SmallEngine, save

ConfigOf = Callable[..., RunConfig]
SHARD = "rank_00000.safetensors"


@pytest.fixture
def autoencoder(config_of: ConfigOf) -> Autoencoder:
    """A model to save."""
    config = config_of().model
    assert isinstance(config, AutoencoderConfig)
    module = Autoencoder(config)
    initialise(module, seed=1, std=0.3)
    return module


@pytest.fixture
def autoencoder_run(grid: Grid, config_of: ConfigOf, autoencoder: Autoencoder, tmp_path: Path) -> Path:
    """The folder of a run with that autoencoder at step 3."""
    save(CheckpointStore(config_of(run__directory=str(tmp_path / "ae")), grid), SmallEngine(autoencoder), 3)
    return tmp_path / "ae"


@pytest.fixture
def calm(grid: Grid, config_of: ConfigOf, autoencoder_run: Path) -> Calm:
    """A CALM on that autoencoder."""
    model = {"type": "calm", "autoencoder": str(autoencoder_run), "num_layers": 1, "num_attention_heads": 2}
    config = config_of(model).model
    assert isinstance(config, CalmConfig)
    module = Calm(config, FrozenAutoencoder(load_autoencoder(autoencoder_run)))
    initialise(module, seed=1, std=0.3)
    return module


@pytest.fixture
def calm_run(grid: Grid, config_of: ConfigOf, calm: Calm, tmp_path: Path) -> Path:
    """The folder of a run with that CALM."""
    model = {"type": "calm", "autoencoder": calm.config.autoencoder, "num_layers": 1, "num_attention_heads": 2}
    save(CheckpointStore(config_of(model, run__directory=str(tmp_path / "calm")), grid), SmallEngine(calm), 4)
    return tmp_path / "calm"


def demand_equal(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """The same weights to the last bit."""
    weights = dict(theirs.named_parameters())
    assert all(torch.equal(weight, weights.pop(name)) for name, weight in ours.named_parameters())
    assert not weights


def test_an_autoencoder_comes_back(autoencoder_run: Path, autoencoder: Autoencoder) -> None:
    for path in (autoencoder_run, str(autoencoder_run), find_checkpoint(autoencoder_run)):
        module = load_autoencoder(path)
        assert not module.training
        demand_equal(module, autoencoder)
    assert step_of(find_checkpoint(autoencoder_run)) == 3
    assert saved_config(autoencoder_run).run.directory == str(autoencoder_run)


def test_calm_comes_back_with_its_autoencoder(calm_run: Path, calm: Calm, autoencoder: Autoencoder) -> None:
    model = load_calm(calm_run)
    assert not model.training
    demand_equal(model, calm)
    frozen = model.autoencoder.state_dict()
    assert all(torch.equal(frozen[name], weight) for name, weight in autoencoder.named_parameters())


def test_an_autoencoder_that_was_moved_can_be_named(calm_run: Path, autoencoder_run: Path) -> None:
    moved = autoencoder_run.with_name("moved")
    autoencoder_run.rename(moved)
    with pytest.raises(UserError, match="there is no checkpoint") as caught:
        load_calm(calm_run)
    assert str(autoencoder_run) in str(caught.value)
    assert load_calm(calm_run, autoencoder=moved).config.num_layers == 1


@pytest.mark.parametrize("known", [True, False])
def test_another_autoencoder_of_the_same_sizes_is_refused(
    grid: Grid, config_of: ConfigOf, calm: Calm, autoencoder: Autoencoder, tmp_path: Path, known: bool
) -> None:
    """Named, or trained anew in place; a checkpoint that does not know its own takes any."""
    model = {"type": "calm", "autoencoder": calm.config.autoencoder, "num_layers": 1, "num_attention_heads": 2}
    fingerprints = {"autoencoder": calm.autoencoder.fingerprint()} if known else {}
    store = CheckpointStore(config_of(model, run__directory=str(tmp_path / "calm")), grid, fingerprints)
    save(store, SmallEngine(calm), 4)
    load_calm(tmp_path / "calm")
    initialise(autoencoder, seed=2, std=0.3)
    save(CheckpointStore(config_of(run__directory=str(tmp_path / "other")), grid), SmallEngine(autoencoder), 3)
    save(CheckpointStore(config_of(run__directory=str(tmp_path / "ae")), grid), SmallEngine(autoencoder), 4)
    for place in (tmp_path / "other", None):
        if known:
            with pytest.raises(UserError, match="not the autoencoder that the model was trained on"):
                load_calm(tmp_path / "calm", place)
        else:
            load_calm(tmp_path / "calm", place)


def test_another_tokenizer_is_refused_where_the_own_is_known(
    grid: Grid, config_of: ConfigOf, autoencoder: Autoencoder, autoencoder_run: Path, tmp_path: Path
) -> None:
    store = CheckpointStore(config_of(run__directory=str(tmp_path / "known")), grid, {"tokenizer": "12ab"})
    save(store, SmallEngine(autoencoder), 3)
    demand_tokenizer(tmp_path / "known", "12ab", "here")
    demand_tokenizer(autoencoder_run, "34cd", "here")
    with pytest.raises(UserError, match=r"not the tokenizer that the model was trained with(.|\n)*--tokenizer"):
        demand_tokenizer(tmp_path / "known", "34cd", "here")


@pytest.mark.parametrize("name", [SHARD, "progress.json", "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused(autoencoder_run: Path, damage: str, name: str) -> None:
    checkpoint = find_checkpoint(autoencoder_run)
    DAMAGES[damage](checkpoint / name)
    for path in (autoencoder_run, checkpoint):
        with pytest.raises(UserError, match=name) as caught:
            load_autoencoder(path)
        assert str(checkpoint) in str(caught.value) and "take another checkpoint" in str(caught.value)


def test_a_folder_without_checkpoint_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=r"there is no checkpoint(.|\n)*name a run folder"):
            load_autoencoder(folder)


def test_the_wrong_kind_of_model_is_refused(calm_run: Path, autoencoder_run: Path) -> None:
    with pytest.raises(UserError, match="a model of type 'calm', not an autoencoder"):
        load_autoencoder(calm_run)
    with pytest.raises(UserError, match="a model of type 'autoencoder', not a CALM"):
        load_calm(autoencoder_run)


@pytest.mark.parametrize("wrong", ["missing", "unknown", "shape"])
def test_weights_that_do_not_fit_are_named(
    grid: Grid, config_of: ConfigOf, autoencoder: Autoencoder, tmp_path: Path, wrong: str
) -> None:
    if wrong == "missing":
        del autoencoder.decoder.norm
    elif wrong == "unknown":
        autoencoder.decoder.register_parameter("unknown", torch.nn.Parameter(torch.zeros(2)))
    else:
        autoencoder.decoder.norm.weight = torch.nn.Parameter(torch.zeros(1))
    save(CheckpointStore(config_of(), grid), SmallEngine(autoencoder), 3)
    with pytest.raises(UserError, match="do not fit the saved config") as caught:
        load_autoencoder(tmp_path / "run")
    assert ("decoder.unknown" if wrong == "unknown" else "decoder.norm.weight") in str(caught.value)


def test_all_weights_can_be_had_whole(autoencoder_run: Path, autoencoder: Autoencoder) -> None:
    found = whole_weights(find_checkpoint(autoencoder_run))
    assert found.keys() == dict(autoencoder.named_parameters()).keys()
    assert all(torch.equal(found[name], weight) for name, weight in autoencoder.named_parameters())
