"""One record after the other from the bytes of a file: lines of JSON, texts, rows of parquet.

Nothing is repaired: what cannot be used is a record with a problem.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import orjson
import pyarrow.parquet

from calm_megatron.config.errors import UserError
from calm_megatron.data.sources import Format, Source

_LISTED = 5
_KEPT = 100
_ROWS = 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Record(NamedTuple):
    """A text, or why there is none."""

    line: int
    """Counted from 1; of parquet files, the row."""
    text: str
    problem: str


@dataclass(frozen=True)
class InvalidRecord:
    """A line, or a text, that cannot be used."""

    path: str
    line: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How records are read.

    Args:
        json_key: key of the text in each JSON object, and column of parquet files.
        document_separator: a line that separates the documents of a text file, white space around it ignored;
            the empty string stands for blank lines; none makes each text file one document.
        skip_invalid: leave invalid records out and count them, instead of stopping.
    """

    json_key: str = "text"
    document_separator: str | None = None
    skip_invalid: bool = False


@dataclass
class Tally:
    """What was met while reading."""

    documents: int = 0
    empty: int = 0
    """Documents without any visible character, left out."""
    text_bytes: int = 0
    """Bytes of the texts in UTF-8."""
    seen: int = 0
    """Records, good or bad."""
    lines: int = 0
    """Lines that were read of a part of a file, blank ones too; rows of parquet files."""
    invalid_count: int = 0
    invalid: list[InvalidRecord] = field(default_factory=list)
    """The first of the invalid records."""

    def add(self, other: "Tally") -> None:
        """Count in what another tally holds."""
        self.documents += other.documents
        self.empty += other.empty
        self.text_bytes += other.text_bytes
        self.seen += other.seen
        self.lines += other.lines
        self.invalid_count += other.invalid_count
        self.invalid += other.invalid[: _KEPT - len(self.invalid)]


def _invalid_utf8(error: UnicodeDecodeError, first_line: int) -> tuple[int, str]:
    before = error.object[: error.start]
    value = error.object[error.start]
    column = len(before) - before.rfind(b"\n")
    return first_line + before.count(b"\n"), f"not valid UTF-8: byte 0x{value:02x} at position {column} of the line"


def _json_record(number: int, line: bytes, key: str) -> Record:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as undecodable:
            return Record(number, "", _invalid_utf8(undecodable, number)[1])
        return Record(number, "", f"not valid JSON: {error.msg} at column {error.colno}")
    if not isinstance(value, dict):
        return Record(number, "", f"a JSON object is needed, this is of type {type(value).__name__}")
    if key not in value:
        keys = ", ".join(map(repr, list(value)[:_LISTED])) or "none"
        return Record(number, "", f'no key "{key}"; the keys are {keys}')
    text = value[key]
    if not isinstance(text, str):
        return Record(number, "", f'"{key}" must be a string, this is of type {type(text).__name__}')
    return Record(number, text, "")


def json_records(lines: Iterable[bytes], key: str) -> Iterator[Record]:
    """Records of lines, blank ones left out."""
    for number, line in enumerate(lines, start=1):
        bare = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
        if not bare.isspace():
            yield _json_record(number, bare, key)


def _text_record(number: int, content: bytes) -> Record:
    try:
        return Record(number, content.decode("utf-8"), "")
    except UnicodeDecodeError as error:
        line, problem = _invalid_utf8(error, number)
        return Record(line, "", problem)


def text_records(stream: IO[bytes], separator: str | None) -> Iterator[Record]:
    """The text of a file, or its parts between lines equal to the separator."""
    if separator is None:
        yield _text_record(1, stream.read().removeprefix(_BYTE_ORDER_MARK))
        return
    wanted, lines, first = separator.strip().encode(), list[bytes](), 1
    for number, line in enumerate(stream, start=1):
        bare = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
        if bare.strip() == wanted:
            if lines:
                yield _text_record(first, b"".join(lines).rstrip(b"\r\n"))
            lines, first = [], number + 1
        else:
            lines.append(bare)
    if lines:
        yield _text_record(first, b"".join(lines).rstrip(b"\r\n"))


def open_parquet(path: Path, key: str) -> pyarrow.parquet.ParquetFile:
    """A parquet file that has the column `key`.

    Raises:
        UserError: it cannot be read, or has no such column of strings.
    """
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"not a parquet file, or a damaged one: {error}", str(path)) from None
    names = file.schema_arrow.names
    if key not in names:
        raise UserError(f'no column "{key}"; the columns are {", ".join(names)}', str(path), "name one with --json-key")
    kind = file.schema_arrow.field(key).type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise UserError(f'the column "{key}" holds {kind}, not strings', str(path), "name another with --json-key")
    return file


def parquet_records(path: Path, key: str, groups: Iterable[int] | None = None) -> Iterator[Record]:
    """Rows of a parquet file, or of some of its row groups; numbers are counted from the first of these."""
    file = open_parquet(path, key)
    chosen = list(range(file.num_row_groups) if groups is None else groups)
    number = 0
    try:
        for batch in file.iter_batches(batch_size=_ROWS, row_groups=chosen, columns=[key], use_threads=False):
            column: list[Any] = batch.column(0).to_pylist()
            for text in column:
                number += 1
                yield Record(number, text or "", "" if text is not None else f'"{key}" is null')
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"the parquet file is damaged: {error}", str(path)) from None


def stream_records(format_: Format, stream: IO[bytes], options: ReadOptions) -> Iterator[Record]:
    """Records of a file of lines or text."""
    if format_ == "jsonl":
        return json_records(stream, options.json_key)
    return text_records(stream, options.document_separator)


def valid_texts(source: Source, records: Iterable[Record], options: ReadOptions, tally: Tally) -> Iterator[str]:
    """Texts of the records, while the tally counts; once a record is invalid and not to be skipped, only counting."""
    for record in records:
        tally.seen += 1
        if record.problem:
            bad = InvalidRecord(str(source.path), record.line, record.problem)
            tally.add(Tally(invalid_count=1, invalid=[bad]))
        elif tally.invalid_count and not options.skip_invalid:
            continue
        elif not record.text or record.text.isspace():
            tally.empty += 1
        else:
            tally.documents += 1
            tally.text_bytes += len(record.text.encode())
            yield record.text


def invalid_error(source: Source, tally: Tally) -> UserError:
    """What is said of a file's invalid records when they are not to be skipped."""
    unit = {"jsonl": "lines", "text": "texts", "parquet": "rows"}[source.format]
    listed = [f"line {record.line}: {record.reason}" for record in tally.invalid[:_LISTED]]
    if tally.invalid_count > _LISTED:
        listed.append(f"and {tally.invalid_count - _LISTED} more")
    return UserError(
        f"{tally.invalid_count} of {tally.seen} {unit} cannot be used",
        "\n    ".join([str(source.path), *listed]),
        "correct them, or leave them out with --skip-invalid",
    )


def empty_error(sources: Iterable[Source], tally: Tally) -> UserError:
    """What is said of a corpus without any text."""
    return UserError(
        "the corpus is empty: no document with any text in it",
        ", ".join([str(source.path) for source in sources][:_LISTED]),
        f"check the files; {tally.empty} empty and {tally.invalid_count} invalid records were seen",
    )
