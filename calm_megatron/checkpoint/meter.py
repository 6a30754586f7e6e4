"""How far a long work on a checkpoint is: told by the library, shown by the command lines."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from tqdm import tqdm


class Meter(Protocol):
    """Hears of work that is done."""

    def __call__(self, doing: str, done: int, total: int) -> None:
        """Bytes of a piece of work; `doing` names it."""


def silent(doing: str, done: int, total: int) -> None:
    """A meter that nobody reads."""


@contextmanager
def progress_bar() -> Iterator[Meter]:
    """A bar for each piece of work that takes more than a second, where stderr is a terminal."""
    bar: tqdm[None] | None = None
    shown, before = "", 0

    def show(doing: str, done: int, total: int) -> None:
        nonlocal bar, shown, before
        if bar is None or shown != doing or done < before:
            if bar is not None:
                bar.close()
            bar = tqdm(desc=doing, total=total, unit="B", unit_scale=True, leave=False, delay=1, disable=None)
            shown, before = doing, 0
        bar.update(done - before)
        before = done

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()
