"""A corpus cut into blocks of work, always the same ones whoever works on them.

Large files of plain JSONL are cut into ranges of bytes, and a line belongs to the range in which it begins; a worker
opens the file itself. What is compressed, or comes through a pipe, can only be read from its beginning: one process
unpacks it, which is a hundred times quicker than encoding it, and hands out blocks of whole lines. Parquet is cut
between row groups. All other files stay whole, and small ones share a block.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import IO

from calm_megatron.data.records import (
    ReadOptions,
    Tally,
    json_records,
    open_parquet,
    parquet_records,
    stream_records,
    valid_texts,
)
from calm_megatron.data.sources import Source
from calm_megatron.data.streams import open_stream

_SMALLEST, _LARGEST, _BLOCKS = 4 << 20, 32 << 20, 1024
_COMPRESSION = 4
"""What compressed text is taken to grow by, to tell small files from large ones."""


@dataclass(frozen=True)
class Piece:
    """A part of a file, or all of it."""

    source: int
    """Place among the sources."""
    start: int = 0
    """First byte, or first row group."""
    stop: int | None = None
    """Byte, or row group, behind the last; none takes the whole file."""
    content: bytes | None = None
    """The bytes themselves, where the file cannot be entered in the middle."""


@dataclass(frozen=True)
class Block:
    """What one worker encodes at a time."""

    number: int
    pieces: tuple[Piece, ...]
    read_bytes: int
    """Bytes on disk behind it, for the progress."""


def _weight(source: Source) -> int:
    """Bytes of text, roughly."""
    return source.size * (_COMPRESSION if source.is_compressed else 1)


def block_size(sources: Sequence[Source]) -> int:
    """Bytes of text in a block: a thousandth of the corpus, but 4 to 32 MB.

    Small enough to keep all workers busy to the end, large enough for a folder of parts that can still be listed.
    """
    return min(max(sum(map(_weight, sources)) // _BLOCKS, _SMALLEST), _LARGEST)


def cut_into_blocks(sources: Sequence[Source], options: ReadOptions, block_bytes: int) -> Iterator[Block]:
    """Blocks of about `block_bytes` of text, in the order of the corpus.

    Raises:
        UserError: a file cannot be read.
    """
    number, small, filled = 0, list[Piece](), 0
    for place, source in enumerate(sources):
        weight = _weight(source)
        is_small = weight <= block_bytes and source.path.is_file()
        if small and (filled + weight > block_bytes or not is_small):
            yield Block(number, tuple(small), sum(sources[piece.source].size for piece in small))
            number, small, filled = number + 1, [], 0
        if is_small:
            small.append(Piece(place))
            filled += weight
            continue
        for piece, read_bytes in _pieces(place, source, options, block_bytes):
            yield Block(number, (piece,), read_bytes)
            number += 1
    if small:
        yield Block(number, tuple(small), sum(sources[piece.source].size for piece in small))


def _pieces(place: int, source: Source, options: ReadOptions, block_bytes: int) -> Iterator[tuple[Piece, int]]:
    """Pieces of a large file, each with its bytes on disk."""
    if source.format == "parquet":
        yield from _row_groups(place, source, options, block_bytes)
    elif source.format == "text":
        yield Piece(place), source.size
    elif source.is_compressed or not source.path.is_file():
        yield from _unpacked(place, source, block_bytes)
    else:
        for start in range(0, source.size, block_bytes):
            stop = min(start + block_bytes, source.size)
            yield Piece(place, start, stop), stop - start


def _row_groups(place: int, source: Source, options: ReadOptions, block_bytes: int) -> Iterator[tuple[Piece, int]]:
    metadata = open_parquet(source.path, options.json_key).metadata
    sizes = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
    start, total = 0, max(1, sum(sizes))
    for group in range(len(sizes)):
        held = sum(sizes[start : group + 1])
        if held >= block_bytes or group == len(sizes) - 1:
            yield Piece(place, start, group + 1), source.size * held // total
            start = group + 1


def _unpacked(place: int, source: Source, block_bytes: int) -> Iterator[tuple[Piece, int]]:
    """Blocks of whole lines; the last line of a file need not end."""
    with open_stream(source.path) as (stream, file):
        told = 0
        while content := stream.read(block_bytes):
            content += stream.readline()
            at = file.tell() if file.seekable() else 0
            yield Piece(place, content=content), at - told
            told = at


def _lines(stream: IO[bytes], start: int, stop: int) -> Iterator[bytes]:
    """Lines of a file that begin at `start` or behind it, and before `stop`."""
    if start:
        stream.seek(start - 1)
        stream.readline()
    at = stream.tell()
    while at < stop and (line := stream.readline()):
        at += len(line)
        yield line


def _counted(lines: Iterable[bytes], tally: Tally) -> Iterator[bytes]:
    for line in lines:
        tally.lines += 1
        yield line


def piece_texts(piece: Piece, source: Source, options: ReadOptions, tally: Tally) -> Iterator[str]:
    """Texts of a piece, while the tally counts; lines are counted from 1 in each piece.

    Raises:
        UserError: the file cannot be read.
    """
    if source.format == "parquet":
        groups = None if piece.stop is None else range(piece.start, piece.stop)
        yield from valid_texts(source, parquet_records(source.path, options.json_key, groups), options, tally)
        tally.lines = tally.seen
    elif piece.content is not None:
        yield from _json_texts(BytesIO(piece.content), source, options, tally)
    else:
        with open_stream(source.path) as (stream, _):
            if piece.stop is not None:
                yield from _json_texts(_lines(stream, piece.start, piece.stop), source, options, tally)
            else:
                yield from valid_texts(source, stream_records(source.format, stream, options), options, tally)


def _json_texts(lines: Iterable[bytes], source: Source, options: ReadOptions, tally: Tally) -> Iterator[str]:
    records = json_records(_counted(lines, tally), options.json_key)
    return valid_texts(source, records, options, tally)
