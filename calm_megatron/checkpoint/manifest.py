"""What a checkpoint says of itself: layout, fingerprints, and size and checksum of each file."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from calm_megatron.checkpoint.files import FileEntry
from calm_megatron.config.errors import UserError

FORMAT = "calm_megatron checkpoint 1"
FILE = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Written last: a checkpoint without one is none."""

    format: str = FORMAT
    layout: dict[str, Any]
    """Ranks of each kind, ZeRO stage and precision of the run that wrote it."""
    engine: dict[str, Any]
    """What an engine has beside weights and moments: updates done, fp16's loss scale; empty beside weights alone."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Of data, tokenizer and autoencoder."""
    files: tuple[FileEntry, ...]

    def save(self, folder: Path) -> None:
        """Write into the checkpoint, with the checksum of its own content."""
        content = asdict(self)
        # No line end behind it, without which it would be as whole: each lost byte is to be found.
        (folder / FILE).write_text(json.dumps({**content, "xxh3": _checksum(content)}, indent=2))

    @staticmethod
    def load(folder: Path) -> "Manifest":
        """Read what `save` wrote.

        Raises:
            UserError: it is missing, damaged, or of another format.
        """
        path = folder / FILE
        try:
            content = json.loads(path.read_text())
            if content.pop("xxh3") != _checksum(content):
                raise ValueError("it has other content than was written")
            files = tuple(FileEntry(**entry) for entry in content.pop("files"))
            manifest = Manifest(files=files, **content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{FILE} cannot be read: {error}", str(path), "take another checkpoint") from None
        if manifest.format != FORMAT:
            raise UserError(f"the format is '{manifest.format}', not '{FORMAT}'", str(path), "take another checkpoint")
        return manifest

    @staticmethod
    def verified(folder: Path) -> "Manifest":
        """Read it, and look at all files of the checkpoint.

        Raises:
            UserError: it, or one of them, is missing or damaged.
        """
        manifest = Manifest.load(folder)
        if problems := manifest.problems(folder):
            raise UserError("; ".join(problems), str(folder), "take another checkpoint")
        return manifest

    def problems(self, folder: Path, number: int = 0, count: int = 1) -> list[str]:
        """What is wrong with the files, or with the one of `count` shares of them that falls to rank `number`."""
        return list(self.problem_files(folder, number, count).values())

    def problem_files(self, folder: Path, number: int = 0, count: int = 1) -> dict[str, str]:
        """The same by the name of the file."""
        share = self.files[number::count]
        return {entry.name: problem for entry in share if (problem := entry.problem(folder))}

    def shards(self, folder: Path) -> list[Path]:
        """The files with weights and moments."""
        return [folder / entry.name for entry in self.files if entry.name.endswith(".safetensors")]


def _checksum(content: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content).encode())
