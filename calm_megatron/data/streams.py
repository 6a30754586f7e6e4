"""Bytes of a file, whether plain, gzip, zstd or xz, with damage turned into one clear error."""

import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import zstandard

from calm_megatron.config.errors import UserError

COMPRESSED_ENDINGS = (".gz", ".zst", ".xz")
_BUFFER_BYTES = 1 << 20
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, gzip.BadGzipFile)


class _ZstdReader(io.RawIOBase):
    """Decompressed bytes of one or several zstd frames.

    The library's own `stream_reader` ends quietly where a file was cut; this one raises `EOFError`.
    """

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        # Files written with `zstd --long` need windows over the library's default of 128 MB.
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._left = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """True: the stream can be read."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill `buffer` with the next bytes; 0 at the end."""
        while not self._ready:
            compressed = self._left or self._raw.read(_BUFFER_BYTES)
            if not compressed:
                if self._frame is not None:
                    raise EOFError("the last zstd frame is not complete")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            self._ready = memoryview(self._frame.decompress(compressed))
            self._left = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def _decompressed(raw: IO[bytes], ending: str) -> IO[bytes]:
    if ending == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw, mode="rb"))
    if ending == ".xz":
        return cast(IO[bytes], lzma.LZMAFile(raw, "rb"))
    if ending == ".zst":
        return cast(IO[bytes], io.BufferedReader(_ZstdReader(raw), _BUFFER_BYTES))
    return raw


@contextmanager
def open_stream(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Open `path` for reading, decompressing by its ending.

    Yields:
        The stream of text bytes, and the file below it, whose `tell()` is the progress in bytes on disk.

    Raises:
        UserError: the file cannot be read, or what is compressed in it is cut or damaged. Errors raised
            inside the `with` block while reading are included.
    """
    try:
        with open(path, "rb", buffering=_BUFFER_BYTES) as raw:
            yield _decompressed(raw, path.suffix.lower()), raw
    except _DAMAGE as error:
        what = f"the compressed file is cut or damaged: {error}"
        raise UserError(what, str(path), "fetch or compress it again; none of its text was used") from None
    except OSError as error:
        raise UserError(f"cannot read the file: {error.strerror or error}", str(path)) from None
