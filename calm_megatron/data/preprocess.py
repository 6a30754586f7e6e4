"""Documents to a data set: read, encode, write, and refuse a tokenizer that does not fit."""

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from calm_megatron.config.errors import UserError
from calm_megatron.data.corpus_facts import CorpusFacts
from calm_megatron.data.documents import DocumentReader, InvalidRecord
from calm_megatron.data.indexed import IndexedWriter
from calm_megatron.data.tokenizer import Tokenizer

_SAMPLE_CHARACTERS = 200_000
_LARGEST_UNKNOWN_SHARE = 0.01
_SHOWN_CHARACTERS = 40
_LISTED = 5
_POOR_BYTES_PER_TOKEN = 1.5


@dataclass(frozen=True)
class PreprocessReport:
    """What was made, for people and tests."""

    prefix: Path
    facts: CorpusFacts
    seconds: float
    invalid: tuple[InvalidRecord, ...]
    """The first of the records that were left out."""
    lossy: str
    """What the tokenizer does not give back, when that was allowed; empty if it gives all back."""

    def __str__(self) -> str:
        facts = self.facts
        per_token = facts.text_bytes / facts.tokens
        lines = [
            f"data set   {self.prefix}.bin, .idx and .facts.json",
            f"documents  {facts.documents:,} in {len(facts.sources):,} files; {facts.empty_documents:,} empty left out",
            f"text       {facts.text_bytes / 1e6:,.2f} MB",
            f"tokens     {facts.tokens:,} ({facts.dtype}); {per_token:.2f} bytes of text each",
            f"vocabulary {facts.vocab_size:,}; end of document {facts.eod_id}, pad {facts.pad_id}",
            f"speed      {self.seconds:.1f} s, {facts.text_bytes / 1e6 / self.seconds:.2f} MB/s, "
            f"{facts.tokens / self.seconds:,.0f} tokens/s",
        ]
        if facts.invalid_records:
            lines.append(f"warning    {facts.invalid_records:,} invalid records left out, among them:")
            lines += [f"           {bad.path}, line {bad.line}: {bad.reason}" for bad in self.invalid[:_LISTED]]
        if self.lossy:
            lines.append(f"warning    {self.lossy}")
        if per_token < _POOR_BYTES_PER_TOKEN:
            lines.append("warning    the tokenizer hardly compresses this text; it was probably trained on other text")
        return "\n".join(lines)


def _sample(texts: Iterator[str]) -> list[str]:
    """The first texts, for the check that must come before anything is written."""
    taken, characters = list[str](), 0
    for text in texts:
        taken.append(text)
        characters += len(text)
        if characters >= _SAMPLE_CHARACTERS:
            break
    return taken


def _first_difference(text: str, back: str) -> str:
    unequal = (place for place, (a, b) in enumerate(zip(text, back, strict=False)) if a != b)
    at = next(unequal, min(len(text), len(back)))
    shown = slice(max(0, at - _SHOWN_CHARACTERS // 2), at + _SHOWN_CHARACTERS // 2)
    return f"{text[shown]!r} becomes {back[shown]!r}"


def _check_fit(tokenizer: Tokenizer, texts: Iterable[str]) -> str:
    """What is lost when texts go to ids and back, in a sentence; empty if nothing is."""
    heads = [text[:_SAMPLE_CHARACTERS] for text in texts]
    ids = tokenizer.encode_batch(heads)
    unknown = sum(document.count(tokenizer.unk_id) for document in ids) if tokenizer.unk_id is not None else 0
    total = sum(map(len, ids))
    if unknown > _LARGEST_UNKNOWN_SHARE * total:
        return f"{unknown / total:.1%} of the ids are unknown to the tokenizer"
    changed = [(text, back) for text, back in zip(heads, map(tokenizer.decode, ids), strict=True) if text != back]
    if not changed:
        return ""
    return f"{len(changed)} of the first {len(heads)} documents do not come back from their ids; " + _first_difference(
        *changed[0]
    )


def _misfit(tokenizer: Tokenizer, problem: str) -> UserError:
    return UserError(
        f"the tokenizer does not fit the data: {problem}",
        str(tokenizer.path),
        "take a byte-level tokenizer (tools/train_tokenizer.py trains one), or accept the loss with --allow-lossy",
    )


def _facts(
    writer: IndexedWriter, reader: DocumentReader, tokenizer: Tokenizer, prefix: Path, unknown: int
) -> CorpusFacts:
    tokenizer_path = tokenizer.path.absolute()
    return CorpusFacts(
        documents=writer.documents,
        tokens=writer.tokens,
        text_bytes=reader.text_bytes,
        unknown_tokens=unknown,
        vocab_size=tokenizer.vocab_size,
        eod_id=tokenizer.eod_id,
        pad_id=tokenizer.pad_id,
        dtype=writer.dtype,
        bin_bytes=writer.bin_bytes,
        bin_sha256=writer.bin_sha256,
        tokenizer=str(tokenizer_path),
        tokenizer_relative=os.path.relpath(tokenizer_path, prefix.absolute().parent),
        tokenizer_fingerprint=tokenizer.fingerprint,
        sources=tuple(str(source.path) for source in reader.sources),
        empty_documents=reader.empty,
        invalid_records=reader.invalid_count,
    )


def preprocess(
    reader: DocumentReader,
    tokenizer: Tokenizer,
    prefix: Path,
    *,
    allow_lossy: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> PreprocessReport:
    """Encode all documents of `reader` into the data set at `prefix`.

    Nothing appears under a final name unless all went well.

    Args:
        reader: a fresh reader.
        tokenizer: gives the ids; its path is noted in the side file.
        prefix: path of the data set without endings.
        allow_lossy: accept a tokenizer that does not give the text back.
        overwrite: replace a data set that is there.
        progress: show a progress bar when stderr is a terminal.

    Raises:
        UserError: bad input (see `DocumentReader`), a tokenizer that does not fit, or an existing data set.
    """
    texts = iter(reader)
    sample = _sample(texts)
    lossy = _check_fit(tokenizer, sample)
    if lossy and not allow_lossy:
        raise _misfit(tokenizer, lossy)
    unknown = 0
    size = sum(source.size for source in reader.sources)
    with (
        IndexedWriter(prefix, vocab_size=tokenizer.vocab_size, eod_id=tokenizer.eod_id, overwrite=overwrite) as writer,
        tqdm(total=size or None, unit="B", unit_scale=True, desc="encoding", disable=None if progress else True) as bar,
    ):
        started = time.monotonic()
        for ids in tokenizer.encode_documents(chain(sample, texts)):
            writer.add(ids)
            if tokenizer.unk_id is not None:
                unknown += int(np.count_nonzero(ids == tokenizer.unk_id))
            bar.set_postfix_str(f"{writer.tokens / (time.monotonic() - started):,.0f} tokens/s", refresh=False)
            bar.update(reader.bytes_read - bar.n)
        if unknown > _LARGEST_UNKNOWN_SHARE * writer.tokens and not allow_lossy:
            raise _misfit(tokenizer, f"{unknown / writer.tokens:.1%} of the ids are unknown to the tokenizer")
        facts = _facts(writer, reader, tokenizer, prefix, unknown)
        writer.publish(facts)
    return PreprocessReport(prefix, facts, time.monotonic() - started, tuple(reader.invalid), lossy)
