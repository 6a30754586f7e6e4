"""Data sets on disk, read back by megatron-core itself, and damaged in every way."""

import hashlib
import json
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from calm_megatron.config.errors import UserError
from calm_megatron.data.corpus_facts import find_tokenizer
from calm_megatron.data.documents import DocumentReader
from calm_megatron.data.indexed import IndexedCorpus, IndexedWriter
from calm_megatron.data.preprocess import preprocess
from calm_megatron.data.sources import find_sources
from calm_megatron.data.tokenizer import Tokenizer

ENDINGS = (".bin", ".idx", ".facts.json")


def copy_of(prefix: Path, folder: Path) -> Path:
    for ending in ENDINGS:
        shutil.copy(f"{prefix}{ending}", f"{folder / 'copy'}{ending}")
    return folder / "copy"


def test_megatron_reads_the_documents(prefix: Path, documents: list[np.ndarray]) -> None:
    dataset = IndexedDataset(str(prefix))
    assert len(dataset) == len(documents) == len(dataset.document_indices) - 1
    assert dataset.index.dtype == np.uint16
    assert all(np.array_equal(dataset[n], document) for n, document in enumerate(documents))


def test_files_are_what_the_format_says(prefix: Path, documents: list[np.ndarray]) -> None:
    ids = np.concatenate(documents).astype("<u2").tobytes()
    assert Path(f"{prefix}.bin").read_bytes() == ids
    lengths = [len(document) for document in documents]
    count = len(documents)
    offsets = 2 * np.cumsum([0, *lengths[:-1]])
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, count, count + 1)
    index += np.array(lengths, "<i4").tobytes() + offsets.astype("<i8").tobytes() + np.arange(count + 1).tobytes()
    assert Path(f"{prefix}.idx").read_bytes() == index


def test_facts(corpus: IndexedCorpus, documents: list[np.ndarray], tokenizer: Tokenizer, texts: list[str]) -> None:
    facts = corpus.facts
    ids = np.concatenate(documents).astype(np.uint16).tobytes()
    assert facts.bin_sha256 == hashlib.sha256(ids).hexdigest()
    assert (facts.documents, facts.tokens, facts.bin_bytes) == (len(documents), len(ids) // 2, len(ids))
    assert facts.text_bytes == sum(len(text.encode()) for text in texts)
    assert (facts.vocab_size, facts.eod_id, facts.pad_id) == (600, 598, 599)
    assert facts.tokenizer_fingerprint == tokenizer.fingerprint
    corpus.verify()


def test_read_gives_parts_of_documents(corpus: IndexedCorpus, documents: list[np.ndarray]) -> None:
    for number in (0, 3, len(documents) - 1):
        assert np.array_equal(corpus.read(number, 2, 9), documents[number][2:9])


def test_large_vocabularies_take_32_bits(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "wide", vocab_size=128_257, eod_id=128_001) as writer:
        assert writer.dtype == "int32"
    with IndexedWriter(tmp_path / "narrow", vocab_size=65_499, eod_id=0) as writer:
        assert writer.dtype == "uint16"
    assert not list(tmp_path.iterdir()), "an unpublished data set must leave nothing"


def test_full_disk_is_one_error_and_leaves_nothing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with (
            pytest.raises(UserError, match="cannot write the data set: File too large"),
            IndexedWriter(tmp_path / "set", vocab_size=600, eod_id=598) as writer,
        ):
            for _ in range(1000):
                writer.add(np.arange(500))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def cut_bin(prefix: Path) -> None:
    Path(f"{prefix}.bin").write_bytes(Path(f"{prefix}.bin").read_bytes()[:-10])


def cut_idx(prefix: Path) -> None:
    Path(f"{prefix}.idx").write_bytes(Path(f"{prefix}.idx").read_bytes()[:-1])


def other_idx(prefix: Path) -> None:
    content = bytearray(Path(f"{prefix}.idx").read_bytes())
    content[34] ^= 1  # Length of the first document.
    Path(f"{prefix}.idx").write_bytes(content)


def old_facts(prefix: Path) -> None:
    facts = json.loads(Path(f"{prefix}.facts.json").read_text())
    Path(f"{prefix}.facts.json").write_text(json.dumps({**facts, "format": "calm_megatron data set 0"}))


def cut_facts(prefix: Path) -> None:
    Path(f"{prefix}.facts.json").write_text('{"documents": 3')


def no_facts(prefix: Path) -> None:
    Path(f"{prefix}.facts.json").unlink()


def no_bin(prefix: Path) -> None:
    Path(f"{prefix}.bin").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_bin, r"file of ids is cut: [\d,]+ bytes, [\d,]+ expected"),
        (cut_idx, r"index file is cut: [\d,]+ bytes, [\d,]+ expected"),
        (other_idx, "different data sets"),
        (old_facts, "another version"),
        (cut_facts, "side file is damaged"),
        (no_facts, "no side file"),
        (no_bin, "not there"),
    ],
)
def test_damage_is_refused_at_opening(
    prefix: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    damaged = copy_of(prefix, tmp_path)
    IndexedCorpus.open(damaged)
    damage(damaged)
    with pytest.raises(UserError, match=message):
        IndexedCorpus.open(damaged)


def test_flipped_bit_is_found_by_verify(prefix: Path, tmp_path: Path) -> None:
    damaged = copy_of(prefix, tmp_path)
    content = bytearray(Path(f"{damaged}.bin").read_bytes())
    content[len(content) // 2] ^= 4
    Path(f"{damaged}.bin").write_bytes(content)
    with pytest.raises(UserError, match="not the ones that were written"):
        IndexedCorpus.open(damaged).verify()


def test_prefix_with_an_ending_is_explained(prefix: Path) -> None:
    with pytest.raises(UserError, match=r"give the path without \.bin or \.idx"):
        IndexedCorpus.open(f"{prefix}.bin")


def test_tokenizer_is_found_after_a_move_and_checked(jsonl: Path, tokenizer_dir: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(tokenizer_dir, old / "tokenizer")
    tokenizer = Tokenizer.load(old / "tokenizer")
    preprocess(DocumentReader(find_sources([jsonl])), tokenizer, old / "set" / "help")
    old.rename(new)
    facts = IndexedCorpus.open(new / "set" / "help").facts
    assert find_tokenizer(new / "set" / "help", facts) == new / "tokenizer"
    with open(new / "tokenizer" / "tokenizer.json", "a") as stream:
        stream.write("\n")
    with pytest.raises(UserError, match="is not the one the data set was made with"):
        find_tokenizer(new / "set" / "help", facts)
    shutil.rmtree(new / "tokenizer")
    with pytest.raises(UserError, match="the tokenizer is gone"):
        find_tokenizer(new / "set" / "help", facts)
