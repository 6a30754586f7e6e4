"""Batches of a run: the same in every layout, resumable at one integer, refused when they are not the model's."""

import gc
import json
import multiprocessing
import os
import shutil
import threading
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import DataConfig
from calm_megatron.data.batch import Batch, evaluation_batches
from calm_megatron.data.data_splits import DataSplits
from calm_megatron.data.documents import DocumentReader
from calm_megatron.data.patching import PatchedDataset
from calm_megatron.data.prefetch import TrainingBatches
from calm_megatron.data.preprocess import preprocess
from calm_megatron.data.sampler import BatchSchedule
from calm_megatron.data.sources import find_sources
from calm_megatron.data.tokenizer import Tokenizer
from calm_megatron.data.train_tokenizer import train_tokenizer


def config_of(prefix: Path, **settings: object) -> DataConfig:
    return DataConfig(data_path=str(prefix), split="80,10,10", seq_length=64, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def splits(prefix: Path) -> DataSplits:
    return DataSplits.open(config_of(prefix), patch_size=4, seed=5, vocab_size=600)


def step_tensors(step: list[Batch]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return tuple(map(torch.cat, zip(*[(b.ids_BT, b.documents_BP, b.sequence_ids_B) for b in step], strict=True)))


def test_splits_share_the_tokenizer_and_no_document(splits: DataSplits, tokenizer: Tokenizer, prefix: Path) -> None:
    assert (splits.meaning.vocab_size, splits.meaning.eod_id, splits.meaning.pad_id) == (600, 598, 599)
    assert splits.fingerprint == tokenizer.fingerprint
    assert Tokenizer.load(splits.tokenizer_path) == Tokenizer.load(prefix.parent / "tokenizer")
    assert splits.valid is not None and splits.test is not None
    assert splits.train.tokens + splits.valid.tokens + splits.test.tokens == splits.train.corpus.facts.tokens
    assert splits.train.tokens > 7 * splits.valid.tokens > 0


def test_batch_shapes_and_contents(splits: DataSplits) -> None:
    step = next(TrainingBatches(splits.train, BatchSchedule(6, None, 3, 1), 12, 0))
    assert [batch.ids_BT.shape for batch in step] == [(3, 64), (3, 64)]
    assert step[0].documents_BP.shape == (3, 16)
    assert (step[0].ids_BT.dtype, step[0].documents_BP.dtype) == (torch.int64, torch.int32)
    assert step[1].sequence_ids_B.tolist() == [15, 16, 17]
    for batch in step:
        for row, index in enumerate(batch.sequence_ids_B.tolist()):
            assert batch.ids_BT[row].tolist() == splits.train.sequence(index).ids_T.tolist()


def test_steps_do_not_depend_on_the_layout(splits: DataSplits) -> None:
    def steps(micro_batch_size: int, ranks: int) -> list[torch.Tensor]:
        schedule = BatchSchedule(12, (4, 4, 30), micro_batch_size, ranks)
        streams = [TrainingBatches(splits.train, schedule, 0, rank) for rank in range(ranks)]
        joined = []
        for _ in range(8):
            ids, _, numbers = step_tensors([batch for stream in streams for batch in next(stream)])
            joined.append(ids[numbers.argsort()])
        return joined

    reference = steps(1, 1)
    assert [len(step) for step in reference[:6]] == [4, 4, 4, 4, 8, 8]
    for layout in ((4, 1), (1, 2), (2, 2), (1, 4)):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(steps(*layout), reference, strict=True))


def test_any_place_can_be_resumed(splits: DataSplits) -> None:
    schedule = BatchSchedule(4, None, 2, 1)
    per_epoch = splits.train.sequences_per_epoch
    steps = per_epoch // 4 + 5
    *_, last = islice(TrainingBatches(splits.train, schedule, 0, 0), steps)
    resumed = next(TrainingBatches(splits.train, schedule, 4 * (steps - 1), 0))
    assert 4 * steps > per_epoch, "the place lies in the second epoch"
    for ours, theirs in zip(step_tensors(resumed), step_tensors(last), strict=True):
        assert torch.equal(ours, theirs)


def test_closing_the_batches_ends_their_thread(splits: DataSplits) -> None:
    before = set(threading.enumerate())
    with TrainingBatches(splits.train, BatchSchedule(2, None, 2, 1), 0, 0) as stream:
        next(stream)
        assert any(thread.name.startswith("data") for thread in set(threading.enumerate()) - before)
    assert not set(threading.enumerate()) - before


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (2, 2)])
def test_worker_processes_read_what_the_thread_reads(splits: DataSplits, workers: int, ahead: int) -> None:
    schedule = BatchSchedule(12, (4, 4, 30), 2, 2)
    plain = TrainingBatches(splits.train, schedule, 4, 1)
    children = set(multiprocessing.active_children())
    with TrainingBatches(splits.train, schedule, 4, 1, num_workers=workers, prefetch_steps=ahead) as stream:
        for _ in range(12):
            ours, theirs = next(stream), next(plain)
            assert len(ours) == len(theirs)
            for mine, other in zip(ours, theirs, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(mine.tensors(), other.tensors(), strict=True))
        assert len(set(multiprocessing.active_children()) - children) == workers
        assert stream.wait_seconds >= 0
    gc.collect()
    assert not set(multiprocessing.active_children()) - children
    plain.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_ids_outside_of_the_vocabulary_are_refused(prefix: Path, tmp_path: Path, workers: int) -> None:
    for ending in (".bin", ".idx", ".facts.json"):
        shutil.copy(f"{prefix}{ending}", tmp_path / f"set{ending}")
    facts = json.loads((tmp_path / "set.facts.json").read_text())
    facts |= {
        "tokenizer": str(prefix.parent / "tokenizer"),
        "tokenizer_relative": os.path.relpath(prefix.parent / "tokenizer", tmp_path),
    }
    (tmp_path / "set.facts.json").write_text(json.dumps(facts))
    ids = np.memmap(tmp_path / "set.bin", dtype=np.uint16, mode="r+")
    ids[::50] = 777
    ids.flush()
    data = DataSplits.open(config_of(tmp_path / "set"), patch_size=4, seed=5, vocab_size=600)
    schedule = BatchSchedule(4, None, 2, 1)
    with (
        TrainingBatches(data.train, schedule, 0, 0, num_workers=workers) as stream,
        pytest.raises(UserError, match=r"id 777 is outside of the vocabulary of 600[\s\S]*set.bin"),
    ):
        next(stream)


def test_errors_of_the_reading_thread_reach_the_caller(splits: DataSplits) -> None:
    assert splits.valid is not None
    stream = TrainingBatches(splits.valid, BatchSchedule(2, None, 2, 1), splits.valid.sequences_per_epoch, 0)
    with pytest.raises(IndexError):
        next(stream)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("limit", [None, 7])
def test_evaluation_takes_each_sequence_once(splits: DataSplits, ranks: int, limit: int | None) -> None:
    valid = splits.valid
    assert valid is not None
    by_rank = [list(evaluation_batches(valid, 3, rank, ranks, limit)) for rank in range(ranks)]
    assert len({len(rank) for rank in by_rank}) == 1, "ranks must take the same number of steps"
    seen = [index for rank in by_rank for batch in rank for index in batch.sequence_ids_B.tolist()]
    assert sorted(seen) == list(range(limit or valid.sequences_per_epoch))
    assert all(len(batch.ids_BT) <= 3 and batch.ids_BT.shape[1] == 64 for rank in by_rank for batch in rank)
    assert all(len(batch.documents_BP) == len(batch.ids_BT) for rank in by_rank for batch in rank)


def test_vocabulary_of_another_size_is_refused(prefix: Path) -> None:
    with pytest.raises(
        UserError, match=r"vocabulary of 512 is not the data set's of 600[\s\S]*model.vocab_size to 600"
    ):
        DataSplits.open(config_of(prefix), patch_size=4, seed=5, vocab_size=512)


def test_patch_size_is_checked_before_anything_is_opened() -> None:
    with pytest.raises(UserError, match="whole patches of 5"):
        DataSplits.open(config_of(Path("nowhere")), patch_size=5, seed=5, vocab_size=600)


def test_contradicting_and_missing_paths_are_refused(prefix: Path) -> None:
    with pytest.raises(UserError, match="contradict"):
        DataSplits.open(config_of(prefix, valid_data_path="x"), patch_size=4, seed=5, vocab_size=600)
    with pytest.raises(UserError, match="no training documents"):
        DataSplits.open(DataConfig(), patch_size=4, seed=5, vocab_size=600)


def test_data_sets_of_their_own(jsonl: Path, texts: list[str], prefix: Path, tmp_path: Path) -> None:
    train_tokenizer(texts[::2], tmp_path / "other", 600)
    for name, tokenizer in (
        ("same", Tokenizer.load(prefix.parent / "tokenizer")),
        ("other", Tokenizer.load(tmp_path / "other")),
    ):
        preprocess(DocumentReader(find_sources([jsonl])), tokenizer, tmp_path / name / "set")

    def open_with(valid: str) -> DataSplits:
        paths = {"train_data_path": str(prefix), "valid_data_path": str(tmp_path / valid / "set")}
        return DataSplits.open(DataConfig(seq_length=64, **paths), patch_size=4, seed=5, vocab_size=600)

    splits = open_with("same")
    assert isinstance(splits.valid, PatchedDataset) and splits.test is None
    assert splits.valid.tokens == splits.train.tokens
    shutil.rmtree(tmp_path / "same")
    with pytest.raises(UserError, match="different tokenizers"):
        open_with("other")
