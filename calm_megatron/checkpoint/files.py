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
        try:
            return self.damage(folder, tell)
        except OSError as error:
            return f"{self.name} cannot be read: {error.strerror}"

    def damage(self, folder: Path, tell: Callable[[int], object] = lambda size: None) -> str | None:
        """The same, but for what may lie with the way to the file, and not with the file.

        Raises:
            OSError: it is there and cannot be read now: a disk, a mount or rights.
        """
        path = folder / self.name
        try:
            size = path.stat().st_size
        except FileNotFoundError as error:
            return f"{self.name} cannot be read: {error.strerror}"
        if size != self.bytes:
            return f"{self.name} has {size:,} bytes instead of {self.bytes:,}"
        if checksum(path, tell) != self.xxh3:
            return f"{self.name} has other bytes than were written"
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
