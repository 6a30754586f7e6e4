"""Documents to a data set: cut into blocks, encode on all cores, join, and refuse a tokenizer that does not fit.

The data set is a function of documents and tokenizer, whatever the number of workers. A killed run is taken up by the
same call: blocks that were finished are not encoded again.
"""

import os
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from calm_megatron.config.errors import UserError
from calm_megatron.data import fit
from calm_megatron.data.blocks import Block, block_size, cut_into_blocks, piece_texts
from calm_megatron.data.corpus_facts import CorpusFacts
from calm_megatron.data.documents import DocumentReader
from calm_megatron.data.encode_block import Encoding, encode_block, end_with_parent
from calm_megatron.data.index_file import dtype_of_ids
from calm_megatron.data.indexed import IndexedWriter
from calm_megatron.data.parts import PartFacts, PartFolder, source_plan
from calm_megatron.data.prefixes import refuse_existing_corpus, remove_surplus, shard_prefix
from calm_megatron.data.preprocess_report import PreprocessReport, length_histogram, report_file, write_report
from calm_megatron.data.records import InvalidRecord, Tally, empty_error, invalid_error
from calm_megatron.data.tokenizer import Tokenizer
from calm_megatron.data.workers import in_order


@dataclass(frozen=True, kw_only=True)
class PreprocessOptions:
    """How a data set is made.

    Args:
        workers: processes that encode; none means one for each core.
        allow_lossy: accept a tokenizer that does not give the text back.
        overwrite: replace a data set that is there, all its shards among it.
        restart: begin again where a killed run left parts.
        fast_path: encode byte-level BPE by tiktoken where it gives the same ids.
        tokens_per_shard: cut the corpus into data sets PREFIX-00000, PREFIX-00001, ... of so many tokens or a block
            more; none makes one data set.
        block_bytes: text of a unit of work, which does not show in the ids; none follows from the size of the corpus.
    """

    workers: int | None = None
    allow_lossy: bool = False
    overwrite: bool = False
    restart: bool = False
    fast_path: bool = True
    tokens_per_shard: int | None = None
    block_bytes: int | None = None


def preprocess(
    reader: DocumentReader, tokenizer: Tokenizer, prefix: Path, options: PreprocessOptions = PreprocessOptions()
) -> PreprocessReport:
    """Encode all documents that `reader` names into the data set at `prefix`.

    Nothing appears under a final name unless all went well.

    Args:
        reader: says which files to read, and how; is not iterated here.
        tokenizer: gives the ids; its path is noted in the side file.
        prefix: path of the data set without endings.
        options: see there.

    Raises:
        UserError: bad input (see `DocumentReader`), a tokenizer that does not fit, or an existing data set.
    """
    parts = PartFolder.beside(prefix)
    if not options.overwrite and not parts.path.exists():  # A run that is taken up replaces what it has published.
        refuse_existing_corpus(prefix, report_file(prefix))
    with parts.opened(_plan(reader, tokenizer, options), options.restart):
        work = _Preprocessing(reader, tokenizer, prefix, options, parts)
        try:
            report = work.run()
        except UserError:
            if work.refused or not parts.any_finished():
                parts.remove()
            raise
        parts.remove()
    return report


def _plan(reader: DocumentReader, tokenizer: Tokenizer, options: PreprocessOptions) -> dict[str, Any]:
    return {
        "format": "calm_megatron parts 1",
        "sources": [source_plan(source.path, source.size) for source in reader.sources],
        "json_key": reader.options.json_key,
        "document_separator": reader.options.document_separator,
        "skip_invalid": reader.options.skip_invalid,
        "tokenizer": tokenizer.fingerprint,
        "fast_path": options.fast_path,
        "block_bytes": options.block_bytes or block_size(reader.sources),
    }


class _Preprocessing:
    """One run."""

    def __init__(
        self,
        reader: DocumentReader,
        tokenizer: Tokenizer,
        prefix: Path,
        options: PreprocessOptions,
        parts: PartFolder,
    ) -> None:
        self.reader, self.prefix, self.options, self.parts = reader, prefix, options, parts
        self.tokenizer = tokenizer
        self.dtype = dtype_of_ids(tokenizer.vocab_size)
        self.started = time.monotonic()
        self.refused = False
        """Whether corpus or tokenizer are no good, and not only the disk full, say; then nothing is kept."""
        self.histogram = length_histogram([])
        self.encoded_bytes = 0
        """Of the texts that this process has not found encoded."""

    def run(self) -> PreprocessReport:
        """Check on a sample, encode, join."""
        sources = self.reader.sources
        blocks = cut_into_blocks(sources, self.reader.options, self.options.block_bytes or block_size(sources))
        first, texts = self._sample(blocks)
        if self.options.fast_path:
            self.tokenizer = fit.prove_fast_path(self.tokenizer, texts)
        lossy = fit.losses(self.tokenizer, texts)
        if lossy and not self.options.allow_lossy:
            raise self._refused(fit.misfit(self.tokenizer, lossy))
        facts = self._encode(chain(first, blocks))
        total = Tally()
        for part in facts:
            for tally in part.tallies.values():
                total.add(tally)
        if not total.documents:
            raise self._refused(empty_error(sources, total))
        unknown, tokens = sum(part.unknown_tokens for part in facts), sum(part.tokens for part in facts)
        if unknown > fit.LARGEST_UNKNOWN_SHARE * tokens and not self.options.allow_lossy:
            share = f"{unknown / tokens:.1%} of the ids are unknown to the tokenizer"
            raise self._refused(fit.misfit(self.tokenizer, share))
        shards = self._join(facts)
        remove_surplus(self.prefix, [prefix for prefix, _ in shards])
        report = PreprocessReport(
            prefixes=tuple(prefix for prefix, _ in shards),
            shards=tuple(made for _, made in shards),
            histogram=tuple(np.trim_zeros(self.histogram, "b").tolist()),
            seconds=time.monotonic() - self.started,
            encoded_bytes=self.encoded_bytes,
            invalid=tuple(total.invalid),
            lossy=lossy,
            fast_path=self.tokenizer.is_fast,
        )
        write_report(self.prefix, report)
        return report

    def _refused(self, error: UserError) -> UserError:
        """The error, after a note that the parts are of no use."""
        self.refused = True
        return error

    def _sample(self, blocks: Iterator[Block]) -> tuple[list[Block], list[str]]:
        """The first blocks, until they hold a text, and their first texts."""
        taken, texts = list[Block](), list[str]()
        while not texts and (block := next(blocks, None)) is not None:
            taken.append(block)
            reading = (
                piece_texts(piece, self.reader.sources[piece.source], self.reader.options, Tally())
                for piece in block.pieces
            )
            texts = fit.sample(chain.from_iterable(reading))
        return taken, texts

    def _encode(self, blocks: Iterator[Block]) -> list[PartFacts]:
        """Facts of all blocks, encoded now or before."""
        found: dict[int, PartFacts] = {}
        count = 0

        def unfinished() -> Iterator[Block]:
            nonlocal count
            for block in blocks:
                count = block.number + 1
                facts = self.parts.finished(block.number, self.dtype)
                if facts is None:
                    yield block
                else:
                    found[block.number] = facts
                    bar.update(block.read_bytes)

        work = Encoding(
            self.reader.sources, self.reader.options, self.tokenizer, self.parts, proven=self.tokenizer.is_fast
        )
        workers = self.options.workers or len(os.sched_getaffinity(0))
        size = sum(source.size for source in self.reader.sources)
        # `disable=None` is no bar unless stderr is a terminal.
        tokens = 0
        with (
            tqdm(total=size or None, unit="B", unit_scale=True, desc="encoding", disable=None) as bar,
            closing(in_order(partial(encode_block, work), unfinished(), workers, end_with_parent)) as results,
        ):
            for block, facts in results:
                found[block.number] = facts
                self._refuse_invalid(block, found)
                tokens += facts.tokens
                self.encoded_bytes += sum(tally.text_bytes for tally in facts.tallies.values())
                seconds = time.monotonic() - self.started
                speed = f"{self.encoded_bytes / 1e6 / seconds:.1f} MB/s of text, {tokens / seconds:,.0f} tokens/s"
                bar.set_postfix_str(speed, refresh=False)
                bar.update(block.read_bytes)
        return self._with_absolute_lines([found[number] for number in range(count)])

    def _refuse_invalid(self, block: Block, found: dict[int, PartFacts]) -> None:
        """Stop at the first source that has invalid records, if they are not to be skipped."""
        if self.reader.options.skip_invalid:
            return
        for place, tally in found[block.number].tallies.items():
            if tally.invalid_count:
                known = self._with_absolute_lines([found[number] for number in range(block.number + 1)])
                of_source = Tally()
                for part in known:
                    of_source.add(part.tallies.get(place, Tally()))
                raise self._refused(invalid_error(self.reader.sources[place], of_source))

    def _with_absolute_lines(self, facts: list[PartFacts]) -> list[PartFacts]:
        """The same, with lines of invalid records counted from the beginning of their files."""
        before: dict[int, int] = {}
        for part in facts:
            for place, tally in part.tallies.items():
                first = before.get(place, 0)
                tally.invalid = [InvalidRecord(bad.path, first + bad.line, bad.reason) for bad in tally.invalid]
                before[place] = first + tally.lines
        return facts

    def _join(self, facts: list[PartFacts]) -> list[tuple[Path, CorpusFacts]]:
        """The parts as data sets: one, or one for each group of parts that fills a shard."""
        limit, groups, filled = self.options.tokens_per_shard, [list[int]()], 0
        for number, part in enumerate(facts):
            groups[-1].append(number)
            filled += part.tokens
            if limit is not None and filled >= limit:
                groups.append([])
                filled = 0
        groups = [group for group in groups if sum(facts[number].tokens for number in group)]
        shards = [shard_prefix(self.prefix, place) for place in range(len(groups))]
        prefixes = [self.prefix] if limit is None else shards
        return [
            (prefix, self._join_shard(prefix, group, facts)) for prefix, group in zip(prefixes, groups, strict=True)
        ]

    def _join_shard(self, prefix: Path, numbers: list[int], facts: list[PartFacts]) -> CorpusFacts:
        tokenizer, tally, places = self.tokenizer, Tally(), dict[int, None]()
        with IndexedWriter(prefix, vocab_size=tokenizer.vocab_size, eod_id=tokenizer.eod_id, overwrite=True) as writer:
            for number in numbers:
                writer.add_encoded(*self.parts.read(number, self.dtype))
                for place, of_source in facts[number].tallies.items():
                    tally.add(of_source)
                    places[place] = None
            path = tokenizer.path.absolute()
            made = CorpusFacts(
                **writer.counts(),
                text_bytes=tally.text_bytes,
                unknown_tokens=sum(facts[number].unknown_tokens for number in numbers),
                vocab_size=tokenizer.vocab_size,
                eod_id=tokenizer.eod_id,
                pad_id=tokenizer.pad_id,
                tokenizer=str(path),
                tokenizer_relative=os.path.relpath(path, prefix.absolute().parent),
                tokenizer_fingerprint=tokenizer.fingerprint,
                sources=tuple(str(self.reader.sources[place].path) for place in places),
                empty_documents=tally.empty,
                invalid_records=tally.invalid_count,
            )
            self.histogram += length_histogram(writer.lengths)
            writer.publish(made)
        return made
