"""Batches of tensors from a run's data sets.

Letters: B sequences of a micro-batch, T tokens, P patches.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import DataConfig
from calm_megatron.data.corpus_facts import find_tokenizer
from calm_megatron.data.indexed import IndexedCorpus
from calm_megatron.data.patching import PatchedDataset, check_lengths
from calm_megatron.data.sampler import BatchSchedule
from calm_megatron.data.splits import split_documents


@dataclass(frozen=True)
class Batch:
    """One micro-batch, on the CPU."""

    ids_BT: torch.Tensor
    """int64."""
    documents_BP: torch.Tensor
    """int32: document of each patch, counted from 0 within each sequence."""
    sequence_ids_B: torch.Tensor
    """int64: sample index of each sequence within the run, the same in every layout; keys of its noise."""


@dataclass(frozen=True)
class DataSplits:
    """The data of a run. All splits share one tokenizer."""

    train: PatchedDataset
    valid: PatchedDataset | None
    test: PatchedDataset | None

    @classmethod
    def open(cls, config: DataConfig, *, patch_size: int, seed: int, vocab_size: int) -> "DataSplits":
        """Open what the configuration names and check it against the model.

        Training data is shuffled by `seed` and endless; validation and test are in their order and end.

        Args:
            config: section `data` of the run.
            patch_size: K.
            seed: of the run.
            vocab_size: of the model.

        Raises:
            UserError: a data set is missing or damaged, paths contradict each other, data sets are of different
                tokenizers, the model's vocabulary is another one, or a split does not fill a sequence.
        """
        check_lengths(config.seq_length, patch_size)
        parts = _open_parts(config)
        _check_vocabulary([corpus for corpus, _ in parts.values()], vocab_size)

        def dataset(name: str) -> PatchedDataset | None:
            if name not in parts or not len(parts[name][1]):
                return None
            corpus, documents = parts[name]
            return PatchedDataset(
                corpus,
                documents,
                name={"train": "training", "valid": "validation"}.get(name, name),
                patch_size=patch_size,
                seq_length=config.seq_length,
                align_documents=config.align_documents,
                seed=seed if name == "train" else None,
            )

        train = dataset("train")
        if train is None:
            raise UserError("there are no training documents", "data", "set data.data_path or data.train_data_path")
        return cls(train, dataset("valid"), dataset("test"))

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary, with the pad token."""
        return self.train.corpus.facts.vocab_size

    @property
    def eod_id(self) -> int:
        """Id at the end of each document."""
        return self.train.corpus.facts.eod_id

    @property
    def pad_id(self) -> int:
        """Id that fills documents up to whole patches."""
        return self.train.corpus.facts.pad_id

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the `tokenizer.json` that all splits were made with."""
        return self.train.corpus.facts.tokenizer_fingerprint

    @property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the ids that are trained on, and of their tokenizer."""
        return {"training data": self.train.corpus.facts.bin_sha256, "tokenizer": self.fingerprint}

    @cached_property
    def tokenizer_path(self) -> Path:
        """Where that tokenizer is now.

        Raises:
            UserError: it is gone, or another.
        """
        return find_tokenizer(self.train.corpus.prefix, self.train.corpus.facts)


def _open_parts(config: DataConfig) -> dict[str, tuple[IndexedCorpus, NDArray[np.int64]]]:
    """Data set and documents of each split that the configuration names."""
    own = {"train": config.train_data_path, "valid": config.valid_data_path, "test": config.test_data_path}
    given = {name: path for name, path in own.items() if path is not None}
    if config.data_path is not None:
        if given:
            raise UserError(
                "one data set to split and data sets of their own contradict each other",
                f"data.data_path and {', '.join(f'data.{name}_data_path' for name in given)}",
                "set one or the other",
            )
        corpus = IndexedCorpus.open(config.data_path)
        split = split_documents(corpus.lengths_D, config.split)
        return {"train": (corpus, split.train), "valid": (corpus, split.valid), "test": (corpus, split.test)}
    corpora = {name: IndexedCorpus.open(path) for name, path in given.items()}
    return {name: (corpus, np.arange(len(corpus.lengths_D))) for name, corpus in corpora.items()}


def _check_vocabulary(corpora: Sequence[IndexedCorpus], vocab_size: int) -> None:
    meanings = {
        (facts.tokenizer_fingerprint, facts.vocab_size, facts.eod_id, facts.pad_id)
        for facts in (corpus.facts for corpus in corpora)
    }
    where = " and ".join(dict.fromkeys(str(corpus.prefix) for corpus in corpora))
    if len(meanings) > 1:
        raise UserError("the data sets were made with different tokenizers", where, "make them with the same one")
    for corpus in corpora:
        if corpus.facts.vocab_size != vocab_size:
            raise UserError(
                f"the model's vocabulary of {vocab_size:,} is not the data set's of {corpus.facts.vocab_size:,}",
                where,
                f"set model.vocab_size to {corpus.facts.vocab_size}",
            )


def read_batch(dataset: PatchedDataset, indices: Sequence[int]) -> Batch:
    """The sequences with these sample indices; none gives a batch with B = 0."""
    sequences = [dataset.sequence(index) for index in indices]
    patches = dataset.seq_length // dataset.patch_size
    ids_BT = np.array([sequence.ids_T for sequence in sequences], dtype=np.int64)
    documents_BP = np.array([sequence.documents_P for sequence in sequences], dtype=np.int32)
    return Batch(
        ids_BT=torch.from_numpy(ids_BT.reshape(len(sequences), dataset.seq_length)),
        documents_BP=torch.from_numpy(documents_BP.reshape(len(sequences), patches)),
        sequence_ids_B=torch.tensor(indices, dtype=torch.int64),
    )


def batches(
    dataset: PatchedDataset, schedule: BatchSchedule, consumed_samples: int, data_rank: int
) -> Iterator[list[Batch]]:
    """Training steps without end, each the list of this rank's micro-batches, read one step ahead by a thread.

    Args:
        dataset: a shuffled one.
        schedule: batch sizes and their division.
        consumed_samples: place in the data at which to begin.
        data_rank: this rank among `schedule.data_parallel_size`.
    """

    def read(consumed: int) -> list[Batch]:
        return [read_batch(dataset, indices) for indices in schedule.micro_batches(consumed, data_rank)]

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="data") as reader:
        ahead = reader.submit(read, consumed_samples)
        while True:
            step = ahead.result()
            consumed_samples += schedule.batch_size_at(consumed_samples)
            ahead = reader.submit(read, consumed_samples)
            yield step


def evaluation_batches(
    dataset: PatchedDataset, micro_batch_size: int, data_rank: int, data_parallel_size: int, limit: int | None = None
) -> Iterator[Batch]:
    """The sequences of an unshuffled set, each exactly once over all ranks.

    Every rank gets the same number of batches, as sharded weights are gathered together; what is left for the last
    round is dealt out evenly, so its batches may be smaller, and on some ranks empty (B = 0): add up sums and counts,
    not means.

    Args:
        dataset: an unshuffled one.
        micro_batch_size: largest B.
        data_rank: this rank.
        data_parallel_size: ranks.
        limit: take only so many sequences, over all ranks, from the beginning.
    """
    count = dataset.sequences_per_epoch if limit is None else min(limit, dataset.sequences_per_epoch)
    stride = micro_batch_size * data_parallel_size
    for first in range(0, count, stride):
        shares = np.array_split(np.arange(first, min(first + stride, count)), data_parallel_size)
        yield read_batch(dataset, shares[data_rank].tolist())
