"""How a checkpoint comes to its final name, and how it goes: at no moment does half of one lie there.

What is not finished, or is being deleted, has a hidden name that ends in `.partial`.
"""

import itertools
import os
import shutil
from pathlib import Path

from calm_megatron.config.atomic import write_atomically


def make_room(aside: Path) -> None:
    """Remove what killed saves and deletions left beside it, and make the folder of the next save."""
    for left in aside.parent.glob(".step_*.partial"):
        shutil.rmtree(left)
    aside.mkdir(parents=True)


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
