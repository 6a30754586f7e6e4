"""megatron-core's `GPTDataset` over a data set, as a baseline; and data sets to read."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from calm_megatron.data.corpus_facts import CorpusFacts, bin_file, idx_file, write_facts
from calm_megatron.data.index_file import write_index
from calm_megatron.data.indexed import IndexedCorpus, IndexedWriter
from calm_megatron.data.patching import PatchedDataset

SEQ_LENGTH = 8192
_EOD, _PAD, _VOCABULARY = 31_998, 31_999, 32_000
_LENGTHS = 1430
"""Mean tokens of a document, as in English prose and documentation."""


def _facts(counts: Any) -> CorpusFacts:
    return CorpusFacts(
        **counts,
        text_bytes=None,
        unknown_tokens=None,
        vocab_size=_VOCABULARY,
        eod_id=_EOD,
        pad_id=_PAD,
        tokenizer="",
        tokenizer_relative="",
        tokenizer_fingerprint="",
        sources=(),
        empty_documents=None,
        invalid_records=None,
    )


def random_data_set(prefix: Path, tokens: int) -> None:
    """Documents of random ids and lengths."""
    random = np.random.default_rng(0)
    with IndexedWriter(prefix, vocab_size=_VOCABULARY, eod_id=_EOD) as writer:
        while writer.tokens < tokens:
            writer.add(random.integers(0, _EOD, size=1 + int(random.exponential(_LENGTHS))))
        writer.publish(_facts(writer.counts()))


def sparse_data_set(prefix: Path, tokens: int) -> None:
    """A data set of so many tokens whose ids are holes in a file, so that it takes no room."""
    lengths = 1 + np.random.default_rng(0).exponential(_LENGTHS, size=tokens // _LENGTHS).astype(np.int32)
    total = int(lengths.sum(dtype=np.int64))
    with open(idx_file(prefix), "wb") as stream:
        write_index(stream, np.dtype(np.uint16), [lengths], len(lengths))
    with open(bin_file(prefix), "wb") as stream:
        stream.truncate(2 * total)
    counts = {"documents": len(lengths), "tokens": total, "dtype": "uint16", "bin_bytes": 2 * total}
    write_facts(prefix, _facts({**counts, "bin_sha256": "unknown"}))


def ours(prefix: Path) -> PatchedDataset:
    """The sequences of all documents, shuffled."""
    return PatchedDataset(
        IndexedCorpus.open(prefix),
        None,
        name="training",
        patch_size=4,
        seq_length=SEQ_LENGTH,
        align_documents=True,
        seed=1,
    )


def megatrons(prefix: Path, samples: int, apart: bool = False) -> Any:
    """Megatron's samples of all documents, shuffled; the index is built here.

    Args:
        prefix: of the data set.
        samples: how many.
        apart: say of each token which document it is of, as ours do, by positions that begin again.
    """
    # Imported here: it takes seconds, which the other side need not wait for.
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    class Tokenizer:
        """What the data set asks a tokenizer for."""

        eod, pad, vocab_size = _EOD, _PAD, _VOCABULARY
        unique_identifiers = "numbers"

    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=SEQ_LENGTH,
        split="1",
        blend=([str(prefix)], None),
        tokenizer=Tokenizer(),
        reset_position_ids=apart,
        reset_attention_mask=apart,
        eod_mask_loss=False,
        create_attention_mask=False,
        path_to_cache=str(prefix.parent / f"index-{os.getpid()}"),  # so that no other process's index is found
    )
    indexed = IndexedDataset(str(prefix))
    documents = np.arange(len(indexed.document_indices) - 1, dtype=np.int32)
    return GPTDataset(indexed, str(prefix), documents, samples, Split.train, dataclasses.replace(config))
