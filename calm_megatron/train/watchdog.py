"""Ends a rank that hangs, with the stacks of its threads on record: a late rank can be told from those it kept."""

import contextlib
import faulthandler
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self


class Watchdog:
    """While open, ends the process when no step has come for some minutes.

    The stacks go to `<run>/stacks/rank_00000.txt`; a rank that ends well leaves no such file. One of an earlier start
    gets its time into its name.

    Args:
        directory: of the run.
        rank: of this process.
        minutes: how long a step may take.
    """

    def __init__(self, directory: Path, rank: int, minutes: float) -> None:
        self._path = directory / "stacks" / f"rank_{rank:05d}.txt"
        self._seconds = minutes * 60
        self._header = f"rank {rank}, process {os.getpid()} on {platform.node()}, no step for {minutes:g} minutes\n"

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # of a start that hung: the evidence stays
            self._path.rename(self._path.with_suffix(f".{int(self._path.stat().st_mtime)}.txt"))
        self._file = self._path.open("w")
        self._file.write(self._header)
        self._file.flush()
        self.beat()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other ranks' files may be there
            self._path.parent.rmdir()

    def beat(self) -> None:
        """A step is done: begin to count anew."""
        # In C and in a thread of its own: it works while this one waits in a collective or holds the interpreter.
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count while work is done that may take longer than a step: validation, waiting for the disk."""
        faulthandler.cancel_dump_traceback_later()
        try:
            yield
        finally:
            self.beat()
