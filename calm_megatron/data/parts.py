"""Encoded blocks on disk, between their encoding and the data set: what a killed run need not do again.

The folder `<prefix>.parts` holds a plan, which says of which input and tokenizer the parts are, and for each finished
block its ids, its documents' lengths and, written last, its tally.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from calm_megatron.config.atomic import write_atomically
from calm_megatron.config.errors import UserError
from calm_megatron.data.files import make_parent, publish, temporary_name
from calm_megatron.data.records import Tally


@dataclass(frozen=True)
class PartFacts:
    """What is known of an encoded block."""

    tokens: int
    """With an end-of-document id each."""
    unknown_tokens: int
    tallies: dict[int, Tally]
    """By place of the source; a block holds pieces of several small files, or one of a large."""


_FACTS = TypeAdapter(PartFacts)


@dataclass(frozen=True)
class PartFolder:
    """The folder of the parts of a data set in the making."""

    path: Path

    @classmethod
    def beside(cls, prefix: Path) -> "PartFolder":
        """The one of the data set at `prefix`."""
        return cls(prefix.with_name(prefix.name + ".parts"))

    @contextmanager
    def opened(self, plan: dict[str, Any], restart: bool) -> Iterator[None]:
        """Hold the folder against other processes, made new or as a killed run of the same plan left it.

        Raises:
            UserError: it is of another plan, or another process works on it.
        """
        make_parent(self.path / "plan.json")
        with open(self.path / "lock", "wb") as lock:
            try:
                # Not flock: that one would outlive a killed run by its worker processes, and fail on some NFS.
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    "another process makes this data set now", str(self.path), "wait for it, or choose another prefix"
                ) from None
            file = self.path / "plan.json"
            if restart or not file.exists():
                self._clear()
                write_atomically(file, json.dumps(plan, indent=2).encode())
            elif (left := json.loads(file.read_text())) != json.loads(json.dumps(plan)):
                changed = ", ".join(name for name in plan if plan[name] != left.get(name))
                raise UserError(
                    f"an unfinished data set was begun from something else; these differ: {changed}",
                    str(self.path),
                    "go on with what it was begun from, or begin again with --restart",
                )
            yield

    def _clear(self) -> None:
        for file in self.path.iterdir():
            if file.name != "lock":
                file.unlink()

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)

    def any_finished(self) -> bool:
        """Whether the folder holds a finished block."""
        return any(self.path.glob("0*.json"))

    def _file(self, number: int, ending: str) -> Path:
        return self.path / f"{number:08d}{ending}"

    def finished(self, number: int, dtype: np.dtype[Any]) -> PartFacts | None:
        """What is known of a block, if it is encoded and whole."""
        try:
            facts = _FACTS.validate_json(self._file(number, ".json").read_bytes())
            whole = self._file(number, ".bin").stat().st_size == facts.tokens * dtype.itemsize
        except FileNotFoundError:
            return None
        return facts if whole else None

    def write(self, number: int, ids: NDArray[np.integer[Any]], lengths: NDArray[np.int32], facts: PartFacts) -> None:
        """Keep an encoded block; there is none before its facts are written.

        Raises:
            UserError: the disk is full, or cannot be written.
        """
        try:
            for ending, values in ((".bin", ids), (".lengths", lengths)):
                temporary = temporary_name(self._file(number, ending))
                values.tofile(temporary)
                publish(temporary, self._file(number, ending))
            write_atomically(self._file(number, ".json"), json.dumps(asdict(facts)).encode())
        except OSError as error:
            raise UserError(
                f"cannot write an encoded block: {error.strerror or error}",
                str(self.path),
                "make room, and run the same command again; it goes on where it was",
            ) from None

    def read(self, number: int, dtype: np.dtype[Any]) -> tuple[NDArray[np.integer[Any]], NDArray[np.int32]]:
        """Ids and lengths of an encoded block."""
        return np.fromfile(self._file(number, ".bin"), dtype), np.fromfile(self._file(number, ".lengths"), np.int32)


def source_plan(path: Path, size: int) -> list[Any]:
    """What tells whether a file is still the one it was."""
    return [str(path.absolute()), size, os.stat(path).st_mtime_ns]
