"""megatron-core's `.idx`, written and read without megatron-core, which takes seconds to import.

Little endian: magic, version, type of the ids, sequences S, documents + 1; then S lengths (int32), S byte offsets
(int64) and the first sequence of each document (int64). Here each document is one sequence.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from calm_megatron.config.errors import UserError

LARGEST_DOCUMENT = int(np.iinfo(np.int32).max)
_HEADER = struct.Struct("<9sQBQQ")
_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_DTYPES: dict[int, type[np.generic]] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    8: np.uint16,
}
_NARROW_VOCABULARY = 65_500
_CHUNK = 1 << 20
_AGAIN = "copy the data set again or make it again with tools/preprocess_data.py"


def dtype_of_ids(vocab_size: int) -> np.dtype[Any]:
    """megatron-core's choice: 16 bits below 65,500 entries, else 32."""
    return np.dtype(np.uint16 if vocab_size < _NARROW_VOCABULARY else np.int32)


def write_index(stream: IO[bytes], dtype: np.dtype[Any], lengths: Iterable[NDArray[np.int32]], documents: int) -> None:
    """Write the index of `documents` documents, whose lengths in tokens come in chunks, twice iterable."""
    code = next(code for code, known in _DTYPES.items() if dtype == known)
    stream.write(_HEADER.pack(_MAGIC, _VERSION, code, documents, documents + 1))
    chunks = list(lengths)
    for chunk in chunks:
        stream.write(chunk.astype("<i4").tobytes())
    offset = 0
    for chunk in chunks:
        ends = offset + np.cumsum(chunk, dtype=np.int64) * dtype.itemsize
        stream.write(np.concatenate([[offset], ends[:-1]]).astype("<i8").tobytes() if len(chunk) else b"")
        offset = int(ends[-1]) if len(chunk) else offset
    for first in range(0, documents + 1, _CHUNK):
        stream.write(np.arange(first, min(first + _CHUNK, documents + 1), dtype="<i8").tobytes())


@dataclass(frozen=True)
class IndexFile:
    """An index, mapped into memory and never copied."""

    dtype: np.dtype[Any]
    lengths_D: NDArray[np.int32]
    """Tokens of each document."""
    offsets_D: NDArray[np.int64]
    """Byte in the `.bin` at which each document begins."""

    @classmethod
    def open(cls, file: Path) -> "IndexFile":
        """Map the index at `file`.

        Raises:
            UserError: it is none, of another version, cut, or of documents of several sequences.
        """
        size = file.stat().st_size
        with open(file, "rb") as stream:
            header = stream.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            raise UserError("not a megatron-core index file", str(file), _AGAIN)
        _, version, code, sequences, boundaries = _HEADER.unpack(header)
        if version != _VERSION:
            raise UserError(f"the index file is of version {version}; only {_VERSION} is known", str(file), _AGAIN)
        if code not in _DTYPES:
            raise UserError(f"the index file names type {code}, which is none of whole numbers", str(file), _AGAIN)
        expected = _HEADER.size + 12 * sequences + 8 * boundaries
        if size != expected:
            how = "cut" if size < expected else "too long"
            raise UserError(f"the index file is {how}: {size:,} bytes, {expected:,} expected", str(file), _AGAIN)
        if boundaries != sequences + 1:
            raise UserError("documents of several sequences are not supported", str(file), _AGAIN)
        if not sequences:
            raise UserError("the data set is empty", str(file), _AGAIN)
        mapped = np.asarray(np.memmap(file, dtype=np.uint8, mode="r"))
        lengths_end = _HEADER.size + 4 * sequences
        return cls(
            np.dtype(_DTYPES[code]),
            mapped[_HEADER.size : lengths_end].view("<i4"),
            mapped[lengths_end : lengths_end + 8 * sequences].view("<i8"),
        )

    def chunks(self) -> Iterator[NDArray[np.int32]]:
        """The lengths, a part at a time."""
        for first in range(0, len(self.lengths_D), _CHUNK):
            yield self.lengths_D[first : first + _CHUNK]
