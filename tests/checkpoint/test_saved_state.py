"""Any part of a weight is read from parts that were cut otherwise, and what is missing is an error."""

import itertools
from pathlib import Path

import pytest
import torch

from calm_megatron.checkpoint.pieces import KINDS, Place
from calm_megatron.checkpoint.saved_state import SavedState
from calm_megatron.checkpoint.shards import write_shard
from calm_megatron.config.errors import UserError
from tests.checkpoint.layouts import MODELS, SHAPES, CutState, whole_state

CUTS = [(1, 1), (1, 3), (2, 1), (2, 3), (4, 2)]


@pytest.mark.parametrize(("ranks", "files"), CUTS)
@pytest.mark.parametrize("model", MODELS)
def test_any_layout_is_read_from_any_other(tmp_path: Path, model: str, ranks: int, files: int) -> None:
    whole = whole_state(model)
    state = SavedState(CutState(model, ranks, files).write(tmp_path / "saved", whole), MODELS[model])
    assert state.names() == sorted(SHAPES[model])
    for kind, name in whole:
        assert state.shape(name) == SHAPES[model][name]
        assert torch.equal(state.whole(kind, name), whole[kind, name])
    for other in itertools.starmap(lambda ranks, files: CutState(model, ranks, files), CUTS):
        for rank, number in itertools.product(range(other.ranks), range(other.files)):
            for place, kind in itertools.product(other.places(rank, number), KINDS):
                assert torch.equal(state.read(kind, place), other.run(whole, kind, place)), (kind, place)


def test_rows_beyond_the_vocabulary_are_zero(tmp_path: Path) -> None:
    state = SavedState(CutState("ar", 2, 1).write(tmp_path / "saved", whole_state("ar")), MODELS["ar"])
    last = state.read("exp_avg", Place("output.weight", 3, 4, (20, 16), 0, 320)).view(20, 16)
    assert last[:17].ne(0).all() and last[17:].eq(0).all()


def test_a_missing_run_is_told(tmp_path: Path) -> None:
    saved = CutState("calm", 2, 2).write(tmp_path / "saved", whole_state("calm"))
    state = SavedState([path for path in saved if path.name != "rank_00002.safetensors"], MODELS["calm"])
    name = "layers.0.mlp.linear_fc2.weight"
    with pytest.raises(UserError, match=rf"the checkpoint has 96 of 192 elements of {name}"):
        state.whole("weight", name)
    assert state.read("weight", Place(name, 0, 2, (16, 12), 0, 192)).shape == (192,)
    with pytest.raises(UserError, match="has 96 of 192 elements"):
        state.read("weight", Place(name, 1, 2, (16, 12), 0, 192))


def test_a_missing_weight_is_told(tmp_path: Path) -> None:
    state = SavedState(CutState("calm", 1, 1).write(tmp_path / "saved", whole_state("calm")), MODELS["calm"])
    with pytest.raises(UserError, match=r"the checkpoint lacks the weight layers\.1\.input_layernorm\.weight"):
        state.read("weight", Place("layers.1.input_layernorm.weight", 0, 1, (16,), 0, 16))


def test_another_shape_is_told(tmp_path: Path) -> None:
    state = SavedState(CutState("calm", 1, 1).write(tmp_path / "saved", whole_state("calm")), MODELS["calm"])
    with pytest.raises(UserError, match=r"final_norm\.weight has shape \(16,\) in the checkpoint, not \(24,\)"):
        state.read("weight", Place("final_norm.weight", 0, 1, (24,), 0, 24))


def test_a_model_without_a_table_is_read_whole(tmp_path: Path) -> None:
    place = Place("encoder.norm.weight", 0, 1, (2, 3), 0, 6)
    write_shard(tmp_path / "file", [place], lambda kind, place: torch.arange(6.0))
    state = SavedState([tmp_path / "file"], None)
    assert state.whole("weight", place.name).tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
