"""Files of a corpus: found in folders and by patterns, told apart by their endings."""

from collections.abc import Iterable
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Literal

from calm_megatron.config.errors import UserError
from calm_megatron.data.streams import COMPRESSED_ENDINGS

Format = Literal["jsonl", "text", "parquet"]
FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".txt": "text",
    ".md": "text",
    ".parquet": "parquet",
}
_KNOWN = ", ".join(FORMATS) + f" and these, but for .parquet, with {', '.join(COMPRESSED_ENDINGS)}"


@dataclass(frozen=True)
class Source:
    """A file of documents and how to read it."""

    path: Path
    format: Format
    size: int
    """Bytes on disk, compressed or not; 0 for a pipe."""

    @property
    def is_compressed(self) -> bool:
        """Whether the ending says so."""
        return self.path.suffix.lower() in COMPRESSED_ENDINGS


def _format_of(path: Path) -> Format | None:
    ending = path.suffix.lower()
    if ending in COMPRESSED_ENDINGS:
        found = FORMATS.get(path.with_suffix("").suffix.lower())
        return None if found == "parquet" else found
    return FORMATS.get(ending)


def _files_of(path: Path) -> list[Path]:
    """The files that one input stands for, sorted by path."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and _format_of(file))
        if not files:
            raise UserError("the folder holds no corpus files", str(path), f"endings that are read: {_KNOWN}")
        return files
    if path.exists():
        return [path]
    if has_magic(str(path)):
        matches = sorted(Path(match) for match in glob(str(path), recursive=True))
        files = [file for match in matches for file in ([match] if match.is_file() else _files_of(match))]
        if files:
            return files
        raise UserError("no file matches the pattern", str(path), "correct --input")
    raise UserError("the corpus file does not exist", str(path), "correct --input")


def _source(file: Path, forced: Format | None) -> Source:
    format_ = forced or _format_of(file)
    if format_ is None:
        raise UserError(
            "the ending does not tell how to read the file",
            str(file),
            f"give --input-format jsonl, text or parquet; known endings: {_KNOWN}",
        )
    return Source(file, format_, file.stat().st_size)


def find_sources(inputs: Iterable[str | Path], input_format: Format | None = None) -> list[Source]:
    """Files to read, in the order given; folders and patterns stand for their corpus files, sorted by path.

    Args:
        inputs: files, folders, or patterns such as `data/**/part-*.jsonl.zst`.
        input_format: read every file this way, whatever its ending.

    Raises:
        UserError: a path is empty or does not exist, holds nothing readable, has an unknown ending, or comes twice.
    """
    paths = list(inputs)
    if "" in paths:
        raise UserError("an input is empty", "--input ''", 'name a file or folder; "." is the current folder')
    sources = [_source(file, input_format) for path in paths for file in _files_of(Path(path))]
    seen: set[Path] = set()
    for source in sources:
        real = source.path.resolve()
        if real in seen:
            raise UserError("the file is given twice", str(source.path), "name each file or folder once")
        seen.add(real)
    return sources
