"""Large files that are written in a stream and appear whole or not at all; for small ones see config/atomic.py."""

import os
from pathlib import Path

from calm_megatron.config.errors import UserError


def temporary_name(path: Path) -> Path:
    """A name beside `path` for what is being written; the process id keeps two writers apart."""
    return path.with_name(f"{path.name}.tmp-{os.getpid()}")


def make_parent(path: Path) -> None:
    """Make the folder that is to hold `path`.

    Raises:
        UserError: it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the output folder: {error.strerror}", str(path.parent)) from None


def publish(temporary: Path, path: Path) -> None:
    """Flush a finished temporary file to disk and give it its final name."""
    with open(temporary, "rb") as stream:
        os.fsync(stream.fileno())
    os.replace(temporary, path)
