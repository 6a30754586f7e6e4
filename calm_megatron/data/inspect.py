"""A data set described: what it holds, its documents as text, and whether it is whole."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from calm_megatron.config.errors import UserError
from calm_megatron.data.corpus_facts import bin_file, find_tokenizer
from calm_megatron.data.indexed import IndexedCorpus
from calm_megatron.data.preprocess_report import length_histogram
from calm_megatron.data.tokenizer import Tokenizer

_LISTED = 5
_FREQUENT = 10


def describe(corpus: IndexedCorpus) -> str:
    """What the side file and the index say."""
    facts = corpus.facts
    sources = ", ".join(facts.sources[:_LISTED])
    more = f" and {len(facts.sources) - _LISTED:,} more" if len(facts.sources) > _LISTED else ""
    per_token = "" if facts.text_bytes is None else f", {facts.text_bytes / facts.tokens:.2f} bytes of text each"
    buckets = enumerate(length_histogram([corpus.lengths_D]).tolist())
    return "\n".join(
        [
            f"data set   {corpus.prefix}",
            f"documents  {facts.documents:,}, of {int(corpus.lengths_D.min()):,} to "
            f"{int(corpus.lengths_D.max()):,} tokens, {facts.tokens / facts.documents:,.1f} on average",
            "lengths    " + ", ".join(f"{count:,} from {1 << power:,}" for power, count in buckets if count),
            f"tokens     {facts.tokens:,} ({facts.dtype}){per_token}",
            f"vocabulary {facts.vocab_size:,}; end of document {facts.eod_id}, pad {facts.pad_id}; "
            f"{_count(facts.unknown_tokens)} unknown",
            f"tokenizer  {facts.tokenizer} (SHA-256 {facts.tokenizer_fingerprint[:16]}...)",
            f"left out   {_count(facts.empty_documents)} empty documents, "
            f"{_count(facts.invalid_records)} invalid records",
            f"made from  {sources}{more}",
        ]
    )


def _count(value: int | None) -> str:
    return "an unknown number of" if value is None else f"{value:,}"


def token_statistics(corpus: IndexedCorpus) -> str:
    """Which ids occur, from a pass over all of them.

    Raises:
        UserError: an id is outside of the vocabulary.
    """
    counts_V = np.zeros(corpus.facts.vocab_size, dtype=np.int64)
    for ids in corpus.parts():
        if not 0 <= int(ids.min()) <= int(ids.max()) < len(counts_V):
            raise UserError(
                f"id {int(ids.max())} is outside of the vocabulary of {len(counts_V):,}", str(bin_file(corpus.prefix))
            )
        counts_V += np.bincount(ids, minlength=len(counts_V))
    tokenizer = Tokenizer.load(find_tokenizer(corpus.prefix, corpus.facts))
    frequent = np.argsort(-counts_V, kind="stable")[:_FREQUENT].tolist()
    shares = (f"{tokenizer.decode([i])!r} {counts_V[i] / counts_V.sum():.1%}" for i in frequent)
    shannon = counts_V[counts_V > 0] / counts_V.sum()
    return "\n".join(
        [
            f"ids        {int((counts_V > 0).sum()):,} of {len(counts_V):,} occur; "
            f"entropy {-(shannon * np.log2(shannon)).sum():.2f} bits a token",
            f"frequent   {', '.join(shares)}",
        ]
    )


def show_documents(corpus: IndexedCorpus, numbers: Sequence[int], limit: int) -> str:
    """The beginnings of some documents as text.

    Args:
        corpus: the data set.
        numbers: of the documents, counted from 0.
        limit: tokens of each to show.

    Raises:
        UserError: there is no such document, or the tokenizer is gone.
    """
    tokenizer = Tokenizer.load(find_tokenizer(corpus.prefix, corpus.facts))
    shown = []
    for number in numbers:
        if not 0 <= number < len(corpus.lengths_D):
            raise UserError(
                f"there is no document {number}", str(corpus.prefix), f"give numbers below {len(corpus.lengths_D):,}"
            )
        length = int(corpus.lengths_D[number])
        text = tokenizer.decode(corpus.read(number, 0, min(limit, length)).tolist())
        shown.append(f"--- document {number:,}: {length:,} tokens\n{text}{'' if length <= limit else ' ...'}")
    return "\n".join(shown)


def open_data_set(prefix: Path, verify: bool) -> IndexedCorpus:
    """Open a data set, and read it whole if asked; see `IndexedCorpus`."""
    corpus = IndexedCorpus.open(prefix)
    if verify:
        corpus.verify()
    return corpus
