"""Tar shards: exact orders for every number of ranks and workers, over files, commands and http."""

import functools
import http.server
import json
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset

from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import DataConfig
from calm_megatron.data import fetch_shards
from calm_megatron.data.data_splits import DataSplits
from calm_megatron.data.documents import DocumentReader
from calm_megatron.data.indexed import IndexedCorpus
from calm_megatron.data.prefetch import TrainingBatches
from calm_megatron.data.sampler import BatchSchedule
from calm_megatron.data.sequences import filled
from calm_megatron.data.shard_sequences import ShardSequences
from calm_megatron.data.sources import find_sources
from calm_megatron.data.tar_shards import corpus_documents, make_shards, text_documents
from calm_megatron.data.tokenizer import Tokenizer

STREAMS, T, K = 4, 64, 4


@pytest.fixture(scope="module")
def shards(corpus: IndexedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tar") / "shards"
    manifest = make_shards(corpus_documents(corpus, 1), corpus.facts.meaning, folder, 250_000)
    assert len(manifest.shards) > 5
    return folder


def open_shards(place: Path | str, streams: int = STREAMS) -> ShardSequences:
    return ShardSequences(str(place), patch_size=K, seq_length=T, align_documents=True, seed=3, streams=streams)


@pytest.fixture(scope="module")
def server(shards: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(shards))) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_address[1]}/{{}}"
        serving.shutdown()


def test_shards_are_webdatasets_of_all_documents(shards: Path, corpus: IndexedCorpus, tmp_path: Path) -> None:
    manifest = json.loads((shards / "shards.json").read_text())
    paths = [str(shards / shard["name"]) for shard in manifest["shards"]]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False).decode())
    assert len(samples) == len(corpus.lengths_D)
    assert sorted(sample["json"]["document"] for sample in samples) == list(range(len(samples)))
    for sample in samples[:50]:
        assert np.array_equal(sample["npy"], corpus.document(sample["json"]["document"]))
        assert sample["npy"].dtype == np.uint16
    assert sum(shard["tokens"] for shard in manifest["shards"]) == corpus.facts.tokens
    assert sum(shard["filled_tokens"][K - 1] for shard in manifest["shards"]) == filled(corpus.lengths_D, K).sum()
    make_shards(corpus_documents(corpus, 1), corpus.facts.meaning, tmp_path, 250_000)
    for file in shards.iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes(), "the same documents give the same bytes"


def test_shards_of_text(jsonl: Path, tokenizer: Tokenizer, documents: list[np.ndarray], tmp_path: Path) -> None:
    reader = DocumentReader(find_sources([jsonl]))
    manifest = make_shards(text_documents(reader, tokenizer), tokenizer.meaning, tmp_path, 10**9)
    assert [shard.documents for shard in manifest.shards] == [len(documents)]
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        assert set(tar.getnames()[:2]) == {"000000000.npy", "000000000.json"}
        assert len(tar.getnames()) == 2 * len(documents)
    read = fetch_shards.fetch_shard(str(tmp_path), manifest.shards[0], np.dtype(manifest.dtype))
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(read, documents, strict=True))


def test_an_epoch_holds_every_token_but_each_shards_remainder(shards: Path, documents: list[np.ndarray]) -> None:
    one = open_shards(shards, streams=1)
    everything = np.bincount(np.concatenate(documents), minlength=600)
    for epoch in range(2):
        first = epoch * one.sequences_per_epoch
        seen = np.concatenate([one.sequence(first + index).ids_T for index in range(one.sequences_per_epoch)])
        missing = everything - np.bincount(seen[seen != one.meaning.pad_id], minlength=600)
        shard_count = len(json.loads((shards / "shards.json").read_text())["shards"])
        assert (missing >= 0).all() and missing.sum() < shard_count * T


def test_order_is_a_pure_function_of_the_index(shards: Path) -> None:
    forward, backward = open_shards(shards), open_shards(shards)
    indices = [0, 1, 5, 130, 131, 777, 3 * forward.sequences_per_epoch + 11]
    expected = {index: forward.sequence(index).ids_T for index in indices}
    for index in reversed(indices):
        assert np.array_equal(backward.sequence(index).ids_T, expected[index])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_places_resume_with_other_ranks_and_workers(shards: Path, ranks: int, workers: int) -> None:
    """After 5 steps of one rank, any number of ranks goes on with the very same sequences."""
    plain = open_shards(shards)
    schedule = BatchSchedule(8, None, 2, ranks)
    got: dict[int, list[int]] = {}
    for rank in range(ranks):
        with TrainingBatches(open_shards(shards), schedule, 40, rank, num_workers=workers) as stream:
            for _ in range(4):
                for batch in next(stream):
                    for index, ids_T in zip(batch.sequence_ids_B.tolist(), batch.ids_BT.tolist(), strict=True):
                        got[index] = ids_T
    assert sorted(got) == list(range(40, 72))
    for index, ids_T in got.items():
        assert ids_T == plain.sequence(index).ids_T.tolist()


def test_ranks_fetch_the_shards_of_their_own_streams(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: dict[int, set[str]] = {}
    for rank in range(2):
        mine = fetched.setdefault(rank, set())
        sequences = open_shards(shards, streams=2)
        original = sequences._fetch
        monkeypatch.setattr(
            sequences, "_fetch", lambda stream, turn, mine=mine, f=original: (mine.add(stream), f(stream, turn))[1]
        )
        with TrainingBatches(sequences, BatchSchedule(8, None, 2, 2), 0, rank) as stream:
            for _ in range(10):
                next(stream)
    assert fetched == {0: {0}, 1: {1}}


def test_what_failed_ahead_of_its_turn_is_fetched_in_its_turn(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that was away for a while must not end a run that has not needed it."""
    monkeypatch.setattr(fetch_shards, "_FIRST_PAUSE_SECONDS", 0.001)
    found = open_shards(shards, streams=1)
    count = found._counts_S[found._shard_of(0, 0)[1]]
    expected = open_shards(shards, streams=1).sequence(count).ids_T
    found.sequence(count - 1)
    state, fetcher = found._streams[0], found._fetcher
    assert state.ahead is not None and state.ahead.result() and fetcher is not None
    away = shards.rename(shards.with_name("away"))
    state.ahead = fetcher.submit(found._fetch, 0, 1)
    assert isinstance(state.ahead.exception(), fetch_shards.ShardLost)
    away.rename(shards)
    assert np.array_equal(found.sequence(count).ids_T, expected)


def test_http_and_commands(shards: Path, server: str) -> None:
    here = open_shards(shards)
    for place in (server, f"pipe:cat {shards}/{{}}", str(shards / "{}")):
        there = open_shards(place)
        for index in (0, 3, 100):
            assert np.array_equal(here.sequence(index).ids_T, there.sequence(index).ids_T)


def test_streams_that_cannot_be_divided_are_refused(shards: Path) -> None:
    with pytest.raises(UserError, match=r"4 streams of shards cannot be divided among 3[\s\S]*3 or 6"):
        TrainingBatches(open_shards(shards), BatchSchedule(6, None, 2, 3), 0, 0)


def test_damage_is_refused(
    shards: Path, corpus: IndexedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_shards, "_FIRST_PAUSE_SECONDS", 0.001)
    with pytest.raises(UserError, match="cannot be fetched"):
        open_shards(tmp_path)
    for file in shards.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    files = sorted(tmp_path.glob("*.tar"))
    for file in files:
        with tarfile.open(file) as tar:
            ids = next(member for member in tar if member.name.endswith(".npy"))
        content = bytearray(file.read_bytes())
        content[ids.offset_data + ids.size - 1] ^= 1
        file.write_bytes(content)
    with pytest.raises(UserError, match="or other ids"):
        open_shards(tmp_path).sequence(0)
    for file in files:
        file.write_bytes(file.read_bytes()[: 1024 * 20])
    with pytest.raises(UserError, match=r"cannot be fetched"):
        open_shards(tmp_path).sequence(0)
    with pytest.raises(UserError, match="shards already"):
        make_shards(corpus_documents(corpus, 1), corpus.facts.meaning, shards, 250_000)
    with pytest.raises(UserError, match="no shard fills one sequence"):
        ShardSequences(str(shards), patch_size=K, seq_length=1 << 20, align_documents=True, seed=3, streams=1)


def test_a_run_reads_shards_and_a_data_set_beside(shards: Path, prefix: Path) -> None:
    config = DataConfig(train_shards=str(shards), valid_data_path=str(prefix), seq_length=T, shard_streams=STREAMS)
    splits = DataSplits.open(config, patch_size=K, seed=3, vocab_size=600)
    assert np.array_equal(splits.train.sequence(9).ids_T, open_shards(shards).sequence(9).ids_T)
    assert splits.tokenizer_path.name == "tokenizer"
