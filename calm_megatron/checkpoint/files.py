"""The files of a checkpoint: size and checksum, and what is wrong with one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import xxhash

_CHUNK = 1 << 20
"""Small enough for a processor's cache."""


@dataclass(frozen=True)
class FileEntry:
    """One file as it was written, relative to the checkpoint."""

    name: str
    bytes: int
    xxh3: str
    """128 bits of XXH3, in hexadecimal."""

    @staticmethod
    def of(path: Path) -> "FileEntry":
        """Of a file as it is now."""
        return FileEntry(path.name, path.stat().st_size, checksum(path))

    def problem(self, folder: Path, tell: Callable[[int], object] = lambda size: None) -> str | None:
        """What is wrong with the file in a folder: missing, cut, or other bytes; none if nothing is.

        Args:
            folder: of the checkpoint.
            tell: hears how many more bytes were looked at.
        """
        path = folder / self.name
        try:
            size = path.stat().st_size
            if size != self.bytes:
                return f"{self.name} has {size:,} bytes instead of {self.bytes:,}"
            if checksum(path, tell) != self.xxh3:
                return f"{self.name} has other bytes than were written"
        except OSError as error:
            return f"{self.name} cannot be read: {error.strerror}"
        return None


def checksum(path: Path, tell: Callable[[int], object] = lambda size: None) -> str:
    """XXH3 of a file as it can be read now, in hexadecimal; `tell` is as above."""
    digest = xxhash.xxh3_128()
    chunk = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(chunk):
            digest.update(chunk[:size])
            tell(size)
    return digest.hexdigest()
