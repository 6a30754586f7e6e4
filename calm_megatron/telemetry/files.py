"""Writing a file so that its final name never holds half of it, and reading one with a clear message."""

import os
import tempfile
from pathlib import Path
from typing import Any

import orjson

from calm_megatron.config.errors import UserError


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` under a temporary name beside `path`, sync it, and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)  # mkstemp gives 0600, and a report is to be shared
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: when it is no valid JSON.
    """
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        again = "make it again with the tool that wrote it"
        raise UserError(f"this file is not valid JSON: {error}", str(path), again) from error
