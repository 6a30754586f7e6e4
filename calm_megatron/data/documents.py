"""Documents from files: JSONL with one document a line, or plain text; also compressed.

Nothing is repaired silently: an invalid line is an error, or, if asked, skipped, counted and listed.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, NamedTuple

import orjson

from calm_megatron.config.errors import UserError
from calm_megatron.data.streams import COMPRESSED_ENDINGS, open_stream

Format = Literal["jsonl", "text"]
_FORMATS: dict[str, Format] = {".jsonl": "jsonl", ".json": "jsonl", ".txt": "text", ".md": "text"}
_LISTED = 5
_KEPT = 100
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Source:
    """A file of documents and how to read it."""

    path: Path
    format: Format
    size: int
    """Bytes on disk, compressed or not."""


@dataclass(frozen=True)
class InvalidRecord:
    """A line, or a text, that cannot be used."""

    path: str
    line: int
    reason: str


class _Record(NamedTuple):
    line: int
    text: str
    problem: str


def _format_of(path: Path) -> Format | None:
    plain = path.with_suffix("") if path.suffix.lower() in COMPRESSED_ENDINGS else path
    return _FORMATS.get(plain.suffix.lower())


def _sources_of(path: Path, forced: Format | None) -> list[Source]:
    known = ", ".join(_FORMATS) + f" and these with {', '.join(COMPRESSED_ENDINGS)}"
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and _format_of(file))
        if not files:
            raise UserError("the folder holds no corpus files", str(path), f"endings that are read: {known}")
    elif path.exists():
        files = [path]
    else:
        raise UserError("the corpus file does not exist", str(path), "correct --input")
    sources = []
    for file in files:
        format_ = forced or _format_of(file)
        if format_ is None:
            raise UserError(
                "the ending does not tell how to read the file",
                str(file),
                f"give --input-format jsonl or text; known endings: {known}",
            )
        sources.append(Source(file, format_, file.stat().st_size))
    return sources


def find_sources(inputs: Iterable[str | Path], input_format: Format | None = None) -> list[Source]:
    """Files to read, in the order given; a folder stands for its text and JSONL files, sorted by path.

    Args:
        inputs: files or folders.
        input_format: read every file this way, whatever its ending.

    Raises:
        UserError: a path does not exist, holds nothing readable, has an unknown ending, or comes twice.
    """
    sources = [source for path in inputs for source in _sources_of(Path(path), input_format)]
    seen: set[Path] = set()
    for source in sources:
        real = source.path.resolve()
        if real in seen:
            raise UserError("the file is given twice", str(source.path), "name each file or folder once")
        seen.add(real)
    return sources


def _invalid_utf8(error: UnicodeDecodeError, first_line: int) -> tuple[int, str]:
    before = error.object[: error.start]
    value = error.object[error.start]
    column = len(before) - before.rfind(b"\n")
    return first_line + before.count(b"\n"), f"not valid UTF-8: byte 0x{value:02x} at position {column} of the line"


def _json_record(number: int, line: bytes, key: str) -> _Record:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as undecodable:
            return _Record(number, "", _invalid_utf8(undecodable, number)[1])
        return _Record(number, "", f"not valid JSON: {error.msg} at column {error.colno}")
    if not isinstance(value, dict):
        return _Record(number, "", f"a JSON object is needed, this is of type {type(value).__name__}")
    if key not in value:
        keys = ", ".join(map(repr, list(value)[:_LISTED])) or "none"
        return _Record(number, "", f'no key "{key}"; the keys are {keys}')
    text = value[key]
    if not isinstance(text, str):
        return _Record(number, "", f'"{key}" must be a string, this is of type {type(text).__name__}')
    return _Record(number, text, "")


def _json_records(stream: IO[bytes], key: str) -> Iterator[_Record]:
    for number, line in enumerate(stream, start=1):
        bare = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
        if not bare.isspace():
            yield _json_record(number, bare, key)


def _text_record(number: int, content: bytes) -> _Record:
    try:
        return _Record(number, content.decode("utf-8"), "")
    except UnicodeDecodeError as error:
        line, problem = _invalid_utf8(error, number)
        return _Record(line, "", problem)


def _text_records(stream: IO[bytes], separator: str | None) -> Iterator[_Record]:
    if separator is None:
        yield _text_record(1, stream.read().removeprefix(_BYTE_ORDER_MARK))
        return
    wanted, lines, first = separator.encode(), list[bytes](), 1
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


class DocumentReader:
    """The texts of all sources, in order, one at a time; iterate once.

    Documents without any visible character are left out and counted in `empty`.

    Args:
        sources: from `find_sources`.
        json_key: key of the text in each JSON object.
        document_separator: a line that separates the documents of a text file, white space around it ignored;
            the empty string stands for blank lines; none makes each text file one document.
        skip_invalid: leave invalid records out, counting them in `invalid_count`, instead of raising.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        json_key: str = "text",
        document_separator: str | None = None,
        skip_invalid: bool = False,
    ) -> None:
        self.sources = list(sources)
        self.documents = 0
        self.empty = 0
        self.text_bytes = 0
        """Bytes of the texts in UTF-8."""
        self.invalid_count = 0
        self.invalid: list[InvalidRecord] = []
        """The first of the invalid records."""
        self._json_key = json_key
        self._separator = None if document_separator is None else document_separator.strip()
        self._skip_invalid = skip_invalid
        self._finished_bytes = 0
        self._file: IO[bytes] | None = None

    @property
    def bytes_read(self) -> int:
        """Progress: bytes on disk read so far, of the sum of `Source.size`."""
        return self._finished_bytes + (self._file.tell() if self._file else 0)

    def __iter__(self) -> Iterator[str]:
        """Yield the texts.

        Raises:
            UserError: a file is unreadable; records are invalid and not to be skipped; there is no document at all.
        """
        for source in self.sources:
            with open_stream(source.path) as (stream, file):
                self._file = file if file.seekable() else None  # A pipe has no place to tell.
                yield from self._texts(source, stream)
                self._file = None
            self._finished_bytes += source.size
        if not self.documents:
            raise UserError(
                "the corpus is empty: no document with any text in it",
                ", ".join(str(source.path) for source in self.sources[:_LISTED]),
                f"check the files; {self.empty} empty and {self.invalid_count} invalid records were seen",
            )

    def _texts(self, source: Source, stream: IO[bytes]) -> Iterator[str]:
        is_json = source.format == "jsonl"
        records = _json_records(stream, self._json_key) if is_json else _text_records(stream, self._separator)
        seen, invalid = 0, list[InvalidRecord]()
        for record in records:
            seen += 1
            if record.problem:
                invalid.append(InvalidRecord(str(source.path), record.line, record.problem))
                self._note(invalid[-1])
            elif invalid and not self._skip_invalid:
                continue  # The file is lost anyway; the rest of it is read to count what is wrong.
            elif not record.text or record.text.isspace():
                self.empty += 1
            else:
                self.documents += 1
                self.text_bytes += len(record.text.encode())
                yield record.text
        if invalid and not self._skip_invalid:
            raise _invalid_error(source, seen, invalid)

    def _note(self, record: InvalidRecord) -> None:
        self.invalid_count += 1
        if len(self.invalid) < _KEPT:
            self.invalid.append(record)


def _invalid_error(source: Source, seen: int, invalid: Sequence[InvalidRecord]) -> UserError:
    unit = "lines" if source.format == "jsonl" else "texts"
    listed = [f"line {record.line}: {record.reason}" for record in invalid[:_LISTED]]
    if len(invalid) > _LISTED:
        listed.append(f"and {len(invalid) - _LISTED} more")
    return UserError(
        f"{len(invalid)} of {seen} {unit} cannot be used",
        "\n    ".join([str(source.path), *listed]),
        "correct them, or leave them out with --skip-invalid",
    )
