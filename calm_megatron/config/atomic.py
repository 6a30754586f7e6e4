"""Small files that appear whole or not at all."""

import os
import tempfile
from pathlib import Path

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
        os.chmod(temporary, 0o644)  # mkstemp gives 0600, and results are to be shared
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def demand_writable(path: Path) -> None:
    """Refuse a file that a user wants written and that cannot be, before the work whose outcome it is to hold.

    Nothing is left behind: folders that are to be made are not made yet.

    Raises:
        UserError: it is a folder or a device, or its folder can be neither made nor written.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError("this is no file that could be written", str(path), "name a file")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(path, error) from None


def write_output(path: Path, content: bytes) -> None:
    """As `write_atomically`, for a file that a user named.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_atomically(path, content)
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"this cannot be written: {error.strerror or error}", str(path), "name another place, or make room"
    )
