"""What a worker process does: the texts of a block to a part on disk."""

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calm_megatron.config.errors import UserError
from calm_megatron.config.parent import die_with_parent
from calm_megatron.data.blocks import Block, piece_texts
from calm_megatron.data.fit import same_ids
from calm_megatron.data.index_file import LARGEST_DOCUMENT, dtype_of_ids
from calm_megatron.data.parts import PartFacts, PartFolder
from calm_megatron.data.records import ReadOptions, Tally
from calm_megatron.data.sources import Source
from calm_megatron.data.tokenizer import Tokenizer

_CHECKED_CHARACTERS = 20_000


@dataclass(frozen=True)
class Encoding:
    """All that the blocks of a corpus have in common."""

    sources: Sequence[Source]
    options: ReadOptions
    tokenizer: Tokenizer
    parts: PartFolder
    proven: bool
    """Whether the fast path is in use because it was proven on a sample; each block then adds to the proof."""


def end_with_parent() -> None:
    """Begin a worker: none may outlive a killed run and write on."""
    die_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # There is a worker for each core already.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def encode_block(work: Encoding, block: Block) -> PartFacts:
    """Encode a block and keep it as a part, unless it holds records that are invalid and not to be skipped.

    Raises:
        UserError: a file cannot be read, a document is too long, or the fast path differs from `tokenizers`.
    """
    tokenizer, tallies = work.tokenizer, dict[int, Tally]()
    dtype = dtype_of_ids(tokenizer.vocab_size)
    end = np.array([tokenizer.eod_id], dtype=dtype)
    ids, lengths, unknown = list[NDArray[np.integer[Any]]](), list[int](), 0
    for document in tokenizer.encode_documents(_checked(work, _texts(work, block, tallies))):
        if document.size >= LARGEST_DOCUMENT:
            raise UserError(
                f"a document has {document.size:,} tokens, more than the format can hold",
                str(work.sources[block.pieces[0].source].path),
                "cut the document; for text files, --document-separator does",
            )
        if tokenizer.unk_id is not None:
            unknown += int(np.count_nonzero(document == tokenizer.unk_id))
        ids += [document.astype(dtype), end]
        lengths.append(document.size + 1)
    joined = np.concatenate(ids) if ids else end[:0]
    facts = PartFacts(len(joined), unknown, tallies)
    if not work.options.skip_invalid and any(tally.invalid_count for tally in tallies.values()):
        return facts  # The corpus will be refused, and no later run may find a part that lacks what is invalid.
    work.parts.write(block.number, joined, np.array(lengths, dtype=np.int32), facts)
    return facts


def _texts(work: Encoding, block: Block, tallies: dict[int, Tally]) -> Iterator[str]:
    for piece in block.pieces:
        tally = tallies.setdefault(piece.source, Tally())
        yield from piece_texts(piece, work.sources[piece.source], work.options, tally)


def _checked(work: Encoding, texts: Iterator[str]) -> Iterator[str]:
    """The texts, after the first of them has been encoded both ways."""
    for number, text in enumerate(texts):
        if number == 0 and work.proven and not same_ids(work.tokenizer, [text[:_CHECKED_CHARACTERS]]):
            raise UserError(
                "tiktoken gives other ids than the tokenizer itself, though not for the first texts",
                str(work.tokenizer.path),
                "encode with --no-fast-path",
            )
        yield text
