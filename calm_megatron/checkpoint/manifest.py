"""What a checkpoint says of itself: layout, fingerprints, and size and checksum of each file."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

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
    """What the engine has beside weights and moments: updates done, and the loss scale of fp16."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Of data, tokenizer and autoencoder."""
    files: tuple[FileEntry, ...]

    def save(self, folder: Path) -> None:
        """Write into the checkpoint."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @staticmethod
    def load(folder: Path) -> "Manifest":
        """Read what `save` wrote.

        Raises:
            UserError: it is missing, cut, or of another format.
        """
        path = folder / FILE
        try:
            content = json.loads(path.read_text())
            files = tuple(FileEntry(**entry) for entry in content.pop("files"))
            manifest = Manifest(files=files, **content)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"the manifest cannot be read: {error}", str(path), "take another checkpoint") from None
        if manifest.format != FORMAT:
            raise UserError(f"the format is '{manifest.format}', not '{FORMAT}'", str(path), "take another checkpoint")
        return manifest

    def problems(self, folder: Path, number: int = 0, count: int = 1) -> list[str]:
        """What is wrong with the files, or with the one of `count` shares of them that falls to rank `number`."""
        share = self.files[number::count]
        return [problem for entry in share if (problem := entry.problem(folder))]

    def shards(self, folder: Path) -> list[Path]:
        """The files with weights and moments."""
        return [folder / entry.name for entry in self.files if entry.name.endswith(".safetensors")]
