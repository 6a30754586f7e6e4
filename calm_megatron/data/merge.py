"""Data sets made from data sets: several as one, some of the documents of one, one cut by shares."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calm_megatron.config.errors import UserError
from calm_megatron.data.corpus_facts import CorpusFacts
from calm_megatron.data.indexed import IndexedCorpus, IndexedWriter
from calm_megatron.data.meaning import demand_one_meaning
from calm_megatron.data.permutation import permutation
from calm_megatron.data.prefixes import refuse_existing, refuse_repeated
from calm_megatron.data.splits import split_documents

_SUBSET_KEY = 0x50B5E7
_DOCUMENTS_AT_A_TIME = 4096


def merge(prefixes: Sequence[Path], output: Path, *, overwrite: bool = False) -> CorpusFacts:
    """Write the documents of all data sets, one after the other, as one.

    Raises:
        UserError: a data set is missing or damaged, they are of different tokenizers, or `output` exists.
    """
    corpora = [IndexedCorpus.open(prefix) for prefix in prefixes]
    demand_one_meaning({str(corpus.prefix): corpus.facts.meaning for corpus in corpora})
    return _write([(corpus, None) for corpus in corpora], output, overwrite)


def subset(prefix: Path, output: Path, tokens: int, *, overwrite: bool = False) -> CorpusFacts:
    """Write documents with `tokens` tokens or a document more, drawn evenly and kept in their order.

    Which ones depends on their number and lengths alone; a smaller subset is part of a larger one.

    Raises:
        UserError: the data set has fewer tokens, or is damaged, or `output` exists.
    """
    corpus = IndexedCorpus.open(prefix)
    if not 0 < tokens <= corpus.facts.tokens:
        raise UserError(
            f"there is no subset of {tokens:,} tokens", str(prefix), f"give 1 to {corpus.facts.tokens:,} tokens"
        )
    order = permutation(len(corpus.lengths_D), _SUBSET_KEY)
    reached = np.cumsum(corpus.lengths_D[order], dtype=np.int64)
    taken = np.sort(order[: int(np.searchsorted(reached, tokens)) + 1])
    return _write([(corpus, taken)], output, overwrite)


def split(prefix: Path, outputs: Sequence[Path], shares: str, *, overwrite: bool = False) -> list[CorpusFacts]:
    """Write the training, validation and test documents of `data.split=shares` as data sets of their own.

    Raises:
        UserError: the shares are malformed or do not fit the outputs, an output comes twice, or a data set is damaged
            or there already.
    """
    corpus = IndexedCorpus.open(prefix)
    parts = split_documents(corpus.lengths_D, shares)
    chosen = [part for part in (parts.train, parts.valid, parts.test) if len(part)]
    if len(chosen) != len(outputs):
        raise UserError(
            f"{len(chosen)} shares above zero and {len(outputs)} outputs",
            f'--split "{shares}"',
            "name one output for each share",
        )
    refuse_repeated(outputs)
    if not overwrite:
        refuse_existing(*outputs)
    return [_write([(corpus, part)], output, overwrite) for part, output in zip(chosen, outputs, strict=True)]


def _write(
    chosen: Sequence[tuple[IndexedCorpus, NDArray[np.int64] | None]], output: Path, overwrite: bool
) -> CorpusFacts:
    """Write the chosen documents, or all where none are named."""
    first = chosen[0][0].facts
    with IndexedWriter(output, vocab_size=first.vocab_size, eod_id=first.eod_id, overwrite=overwrite) as writer:
        for corpus, documents in chosen:
            if documents is None:
                for ids in corpus.parts():
                    writer.add_encoded(ids, np.empty(0, dtype=np.int32))
                writer.add_encoded(ids[:0], np.array(corpus.lengths_D))
            else:
                _copy(corpus, documents, writer)
        whole = all(documents is None for _, documents in chosen)
        facts = _facts([corpus for corpus, _ in chosen], whole, writer, output)
        writer.publish(facts)
    return facts


def _copy(corpus: IndexedCorpus, documents: NDArray[np.int64], writer: IndexedWriter) -> None:
    for start in range(0, len(documents), _DOCUMENTS_AT_A_TIME):
        some = documents[start : start + _DOCUMENTS_AT_A_TIME]
        lengths = corpus.lengths_D[some]
        ids = [corpus.read(int(d), 0, int(length)) for d, length in zip(some, lengths, strict=True)]
        writer.add_encoded(np.concatenate(ids), lengths)


def _facts(corpora: Sequence[IndexedCorpus], whole: bool, writer: IndexedWriter, output: Path) -> CorpusFacts:
    """The first side file with what changed; what only whole data sets know is unknown of a part."""
    all_facts = [corpus.facts for corpus in corpora]

    def summed(name: str) -> int | None:
        counts = [getattr(facts, name) for facts in all_facts]
        return sum(counts) if whole and None not in counts else None

    return replace(
        all_facts[0],
        **writer.counts(),
        text_bytes=summed("text_bytes"),
        unknown_tokens=summed("unknown_tokens"),
        tokenizer_relative=os.path.relpath(all_facts[0].tokenizer, output.absolute().parent),
        sources=tuple(dict.fromkeys(source for facts in all_facts for source in facts.sources)),
        empty_documents=summed("empty_documents"),
        invalid_records=summed("invalid_records"),
    )
