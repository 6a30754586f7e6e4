"""Shards are safetensors files, written in a stream, and read in slices."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from calm_megatron.checkpoint.files import checksum
from calm_megatron.checkpoint.pieces import KINDS, Piece, Place
from calm_megatron.checkpoint.shards import Shard, ShardWriter, write_shard
from calm_megatron.config.errors import UserError

PLACES = [
    Place("layers.0.weight", 1, 2, (4, 6), 3, 20),
    Place("Name mit Ümlaut", 0, 1, (), 0, 1),
    Place("bias", 0, 1, (7,), 0, 7),
]


def values(kind: str, place: Place) -> Tensor:
    """Other numbers for each element."""
    return torch.arange(place.start, place.stop) + 100.0 * KINDS.index(kind) + 1000.0 * len(place.name)


def read(shard: Shard, kind: str, name: str, start: int, stop: int) -> Tensor:
    """Elements of a run."""
    run = torch.full((stop - start,), torch.nan)
    shard.read_into(run, kind, name, start)
    return run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A shard with these places."""
    file = tmp_path / "rank_00000.safetensors"
    write_shard(file, PLACES, values)
    return file


def test_anyone_can_read_it(path: Path) -> None:
    found = load_file(path)
    assert found.keys() == {f"{kind}/{place.name}" for kind in KINDS for place in PLACES}
    for place in PLACES:
        for kind in KINDS:
            assert torch.equal(found[f"{kind}/{place.name}"], values(kind, place))
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["places"])[0] == ["layers.0.weight", 1, 2, [4, 6], 3, 20]


def test_places_and_runs_come_back(path: Path) -> None:
    shard = Shard(path)
    assert shard.places == PLACES
    for place in PLACES:
        for kind in KINDS:
            assert torch.equal(read(shard, kind, place.name, 0, place.stop - place.start), values(kind, place))
    assert torch.equal(read(shard, "exp_avg", "bias", 2, 5), values("exp_avg", PLACES[2])[2:5])


def test_the_entry_is_that_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    entry = write_shard(file, PLACES, values)
    assert (entry.name, entry.bytes, entry.xxh3) == ("file", file.stat().st_size, checksum(file))
    assert entry.problem(tmp_path) is None


def test_a_shard_may_be_empty(tmp_path: Path) -> None:
    write_shard(tmp_path / "file", [], values)
    assert Shard(tmp_path / "file").places == [] and load_file(tmp_path / "file") == {}


def test_views_of_larger_tensors_are_written_as_they_look(tmp_path: Path) -> None:
    wide = torch.randn(5, 2, requires_grad=True)
    place = Place("column", 0, 1, (5,), 0, 5)
    write_shard(tmp_path / "file", [place], lambda kind, place: wide[:, 1])
    assert torch.equal(read(Shard(tmp_path / "file"), "weight", "column", 0, 5), wide[:, 1])


@pytest.mark.parametrize("run", [torch.zeros(7, dtype=torch.bfloat16), torch.zeros(6), torch.zeros(7, 1)])
def test_what_is_no_fp32_run_of_the_place_is_refused(tmp_path: Path, run: Tensor) -> None:
    with pytest.raises(ValueError, match="is no fp32 run of Place"):
        write_shard(tmp_path / "file", [PLACES[2]], lambda kind, place: run)


def test_two_runs_of_a_weight_are_refused(tmp_path: Path) -> None:
    two = [Place("bias", 0, 1, (7,), 0, 3), Place("bias", 0, 1, (7,), 3, 7)]
    with pytest.raises(ValueError, match="one run of a weight"):
        write_shard(tmp_path / "file", two, values)
    assert not (tmp_path / "file").exists()


def test_runs_out_of_turn_and_missing_ones_are_refused(tmp_path: Path) -> None:
    with (
        ShardWriter(tmp_path / "file", PLACES) as shard,
        pytest.raises(ValueError, match=r"exp_avg of .* came in the place of"),
    ):
        shard.write("exp_avg", PLACES[0], values("exp_avg", PLACES[0]))
    with ShardWriter(tmp_path / "file", PLACES) as shard:
        shard.write("weight", PLACES[0], values("weight", PLACES[0]))
        with pytest.raises(ValueError, match="file lacks"):
            shard.finish()


def test_a_file_that_ends_early_is_refused(path: Path) -> None:
    shard = Shard(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="the shard ends before exp_avg_sq of bias"):
        read(shard, "exp_avg_sq", "bias", 0, 7)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 9])
def test_shares_of_a_piece_make_it_up(count: int) -> None:
    place = Place("bias", 0, 1, (10,), 2, 9)
    piece = Piece(place, {kind: values(kind, place) for kind in KINDS})
    shares = [piece.share(number, count) for number in range(count)]
    assert (shares[0].place.start, shares[-1].place.stop) == (2, 9)
    assert all(a.place.stop == b.place.start for a, b in itertools.pairwise(shares))
    lengths = [share.place.stop - share.place.start for share in shares]
    assert max(lengths) - min(lengths) <= 1
    for kind in KINDS:
        assert torch.equal(torch.cat([share.values[kind] for share in shares]), piece.values[kind])
