"""The manifest is read as it was written, or not at all."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from calm_megatron.checkpoint.files import FileEntry, checksum
from calm_megatron.checkpoint.manifest import Manifest
from calm_megatron.config.errors import UserError
from tests.checkpoint.damage import DAMAGES

MANIFEST = Manifest(
    layout={"world_size": 2, "precision": "fp16"},
    engine={"updates": 7, "loss_scaler": {"cur_scale": 65536.0}},
    fingerprints={"training data": "ab", "Zerteiler für Wörter": "cd"},
    files=(FileEntry("rank_00000.safetensors", 100, "0f"), FileEntry("progress.json", 3, "1e")),
)


@pytest.fixture
def written(tmp_path: Path) -> bytes:
    """The bytes of that manifest, in a file."""
    MANIFEST.save(tmp_path)
    return (tmp_path / "manifest.json").read_bytes()


def test_it_comes_back(tmp_path: Path, written: bytes) -> None:
    assert Manifest.load(tmp_path) == MANIFEST
    assert MANIFEST.shards(tmp_path) == [tmp_path / "rank_00000.safetensors"]
    assert json.loads(written)["format"] == "calm_megatron checkpoint 1"


def test_every_flipped_bit_is_found(tmp_path: Path, written: bytes) -> None:
    for place in range(len(written)):
        damaged = bytearray(written)
        damaged[place] ^= 1 << place % 8
        (tmp_path / "manifest.json").write_bytes(damaged)
        with pytest.raises(UserError, match=r"manifest\.json"):
            Manifest.load(tmp_path)


def test_every_cut_is_found(tmp_path: Path, written: bytes) -> None:
    for size in range(len(written)):
        (tmp_path / "manifest.json").write_bytes(written[:size])
        with pytest.raises(UserError, match=r"manifest\.json cannot be read"):
            Manifest.load(tmp_path)


@pytest.mark.parametrize("content", ["[]", "7", "null", '{"files": []}'])
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json cannot be read"):
        Manifest.load(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    replace(MANIFEST, format="calm_megatron checkpoint 2").save(tmp_path)
    with pytest.raises(UserError, match="the format is 'calm_megatron checkpoint 2', not 'calm_megatron checkpoint 1'"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("deleted", "file cannot be read: No such file or directory"),
        ("cut", "file has 4,999 bytes instead of 5,000"),
        ("flipped", "file has other bytes than were written"),
    ],
)
def test_a_damaged_file_is_told_with_what_is_wrong(tmp_path: Path, damage: str, words: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(5000))
    entry = FileEntry.of(path)
    assert entry == FileEntry("file", 5000, checksum(path)) and entry.problem(tmp_path) is None
    DAMAGES[damage](path)
    assert entry.problem(tmp_path) == words


def test_ranks_share_the_files_to_be_verified(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"file_{number}").write_bytes(bytes(number))
    manifest = replace(MANIFEST, files=tuple(FileEntry.of(path) for path in sorted(tmp_path.iterdir())))
    assert manifest.problems(tmp_path) == []
    for number in (1, 2, 3):
        (tmp_path / f"file_{number}").unlink()
    found = [manifest.problems(tmp_path, rank, 2) for rank in range(2)]
    assert [[problem.split()[0] for problem in problems] for problems in found] == [["file_2"], ["file_1", "file_3"]]
