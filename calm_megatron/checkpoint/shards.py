"""The file of one rank: a safetensors file of flat runs, written in a stream with its checksum, read in slices.

Each weight has one run in a file, as `weight/<name>`, `exp_avg/<name>` and `exp_avg_sq/<name>`, or as the first alone
where there are no moments; the metadata entry `places` says which run of which part it is.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import torch
import xxhash
from torch import Tensor

from calm_megatron.checkpoint.files import FileEntry
from calm_megatron.checkpoint.pieces import KINDS, Place
from calm_megatron.config.errors import UserError

_FP32_BYTES = 4
_LENGTH_BYTES = 8


class ShardWriter:
    """A shard that is being written: of each place, in their order, the run of each kind.

    Args:
        path: of the file.
        places: which runs it is to hold; of each weight one.
        kinds: of the values.
    """

    def __init__(self, path: Path, places: Sequence[Place], kinds: Sequence[str] = KINDS) -> None:
        self.path = path
        self._due = ((kind, place) for place in places for kind in kinds)
        self._digest = xxhash.xxh3_128()
        head = _head(places, kinds)
        self._file = path.open("wb")
        self._put(head)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, kind: str, place: Place, run: Tensor) -> None:
        """Append a run.

        Raises:
            ValueError: it is not the next one, or is no fp32 run of the place.
            OSError: the disk refuses.
        """
        if (kind, place) != (due := next(self._due, None)):
            raise ValueError(f"{kind} of {place} came in the place of {due}")
        if run.dtype != torch.float32 or run.shape != (place.stop - place.start,):
            raise ValueError(f"{place.name}: {run.dtype} of shape {tuple(run.shape)} is no fp32 run of {place}")
        self._put(_bytes(run.detach().cpu().contiguous()))

    def finish(self) -> FileEntry:
        """Bring the file to the disk.

        Raises:
            ValueError: runs are missing.
            OSError: the disk refuses.
        """
        if due := next(self._due, None):
            raise ValueError(f"{self.path.name} lacks {due}")
        self._file.flush()
        os.fsync(self._file.fileno())
        return FileEntry(self.path.name, self._file.tell(), self._digest.hexdigest())

    def _put(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self._file.write(data)


def write_shard(
    path: Path, places: Sequence[Place], read: Callable[[str, Place], Tensor], kinds: Sequence[str] = KINDS
) -> FileEntry:
    """Write a shard, synced to the disk, one run after the other; errors as in `ShardWriter`.

    Args:
        path: of the file.
        places: which runs it is to hold.
        read: gives the fp32 values of a run by kind and place, when its turn comes.
        kinds: of the values.
    """
    with ShardWriter(path, places, kinds) as shard:
        for place in places:
            for kind in kinds:
                shard.write(kind, place, read(kind, place))
        return shard.finish()


class Shard:
    """A shard to read from: its head once, and runs as they are asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = json.loads(file.read(length))
        listed = json.loads(header.pop("__metadata__")["places"])
        self.places = [Place(name, part, parts, tuple(shape), *run) for name, part, parts, shape, *run in listed]
        """Which runs it holds, in the order in which they were written."""
        self.kinds = tuple(kind for kind in KINDS if any(key.startswith(f"{kind}/") for key in header))
        """Of the values: without the moments where only weights were kept."""
        self._begins = {key: _LENGTH_BYTES + length + entry["data_offsets"][0] for key, entry in header.items()}

    def read_into(self, values: Tensor, kind: str, name: str, start: int) -> None:
        """Fill flat fp32 values with the run that the file holds of a weight, from its element `start` on.

        Raises:
            UserError: the file ends before.
        """
        with self.path.open("rb") as file:
            file.seek(self._begins[f"{kind}/{name}"] + start * _FP32_BYTES)
            if file.readinto(_bytes(values)) != values.nbytes:
                raise UserError(f"the shard ends before {kind} of {name}", str(self.path), "take another checkpoint")


def _head(places: Sequence[Place], kinds: Sequence[str]) -> bytes:
    """Length and JSON header of a safetensors file, filled up to a multiple of 8 bytes with blanks."""
    listed = [(place.name, place.part, place.parts, place.shape, place.start, place.stop) for place in places]
    header: dict[str, object] = {"__metadata__": {"places": json.dumps(listed)}}
    end = 0
    for place in places:
        length = place.stop - place.start
        for kind in kinds:
            begin, end = end, end + length * _FP32_BYTES
            header[f"{kind}/{place.name}"] = {"dtype": "F32", "shape": [length], "data_offsets": [begin, end]}
    if len(header) != 1 + len(kinds) * len(places):
        raise ValueError("a shard holds one run of a weight, not several")
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _bytes(run: Tensor) -> memoryview:
    return run.view(torch.uint8).numpy().data
