"""How a checkpoint comes to its final name, and how it goes: at no moment does half of one lie there.

What is not finished, or is being deleted, has a hidden name that ends in `.partial`.
"""

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from calm_megatron.config.atomic import write_atomically
from calm_megatron.config.errors import UserError


def make_room(aside: Path) -> None:
    """Remove what killed saves and deletions left beside it, and make the folder of the next save."""
    for left in aside.parent.glob(".step_*.partial"):
        shutil.rmtree(left, ignore_errors=left != aside)  # a file that somebody reads may stay on a network drive
    aside.mkdir(parents=True)


def demand_free(target: Path) -> None:
    """Raise a `UserError` if something has the name already."""
    if target.exists() or target.is_symlink():
        raise UserError("there is something of this name", str(target), "name a folder that does not exist")


@contextmanager
def new_folder(target: Path, what: str = "result", mark: str = "") -> Iterator[Path]:
    """A folder to write into, under a hidden name; it gets its own when the block ends well, else it goes.

    Args:
        target: its name.
        what: it is, in words.
        mark: begins the hidden name, where that of the target alone means something else.

    Raises:
        UserError: something has the name already, or the disk refuses.
    """
    demand_free(target)
    aside = target.with_name(f".{mark}{target.name}.partial")
    try:
        with refusals_told(target, what):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            yield aside
            for path in sorted(aside.rglob("*")):
                sync(path)
            publish(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def refusals_told(target: Path, what: str) -> Iterator[None]:
    """Turn what the disk refuses into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the {what} could not be written: {error}", str(target), "make room, or name another folder"
        ) from None


def publish(aside: Path, final: Path) -> None:
    """Give a folder, whose files are synced, its final name; one that has it goes after that."""
    sync(aside)
    old = _going(final)
    if final.exists():
        os.replace(final, old)
    os.replace(aside, final)
    # The folder above may be new, too.
    for folder in (final.parent, final.parent.parent):
        sync(folder)
    shutil.rmtree(old, ignore_errors=True)


def withdraw(checkpoint: Path) -> Path:
    """Take a published checkpoint's name away; returns the folder to delete."""
    return checkpoint.rename(_going(checkpoint))


def set_aside(damaged: Path) -> Path:
    """Rename a damaged checkpoint, so that nothing takes it for a whole one; returns where it is now."""
    endings = itertools.chain([""], (f"_{number}" for number in itertools.count(2)))
    names = (damaged.with_name(f"damaged_{damaged.name}{ending}") for ending in endings)
    free = next(name for name in names if not name.exists())
    os.replace(damaged, free)
    return free


def point_to(checkpoint: Path | None, directory: Path) -> None:
    """Let `latest` in a folder of checkpoints name one of them, or go when there is none."""
    latest = directory / "latest"
    if checkpoint is None:
        latest.unlink(missing_ok=True)
        return
    write_atomically(latest, f"{checkpoint.name}\n".encode())
    sync(directory)


def sync(path: Path) -> None:
    """Let a file, or the names in a folder, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _going(checkpoint: Path) -> Path:
    return checkpoint.with_name(f".{checkpoint.name}.deleted.partial")
