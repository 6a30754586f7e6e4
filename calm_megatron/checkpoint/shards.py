"""The file of one rank: a safetensors file of flat runs, written in a stream with its checksum, read in slices.

Each weight has one run in a file, as `weight/<name>`, `exp_avg/<name>` and `exp_avg_sq/<name>`; the metadata entry
`places` says which run of which part it is.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import xxhash
from safetensors import safe_open
from torch import Tensor

from calm_megatron.checkpoint.files import FileEntry
from calm_megatron.checkpoint.pieces import KINDS, Place

_FP32_BYTES = 4


def write_shard(path: Path, places: Sequence[Place], read: Callable[[str, Place], Tensor]) -> FileEntry:
    """Write a shard, synced to the disk, one run after the other.

    Args:
        path: of the file.
        places: which runs it is to hold.
        read: gives the fp32 values of a run by kind and place, when its turn comes.

    Raises:
        OSError: the disk refuses.
    """
    digest = xxhash.xxh3_128()
    with path.open("wb") as file:
        head = _head(places)
        digest.update(head)
        file.write(head)
        for place in places:
            for kind in KINDS:
                data = _bytes(read(kind, place), place)
                digest.update(data)
                file.write(data)
        file.flush()
        os.fsync(file.fileno())
        return FileEntry(path.name, file.tell(), digest.hexdigest())


def read_places(path: Path) -> list[Place]:
    """Which runs a shard holds, in the order in which they were written."""
    with safe_open(path, framework="pt") as file:
        entries = json.loads(file.metadata()["places"])
    return [Place(name, part, parts, tuple(shape), start, stop) for name, part, parts, shape, start, stop in entries]


def read_run(path: Path, kind: str, name: str, start: int, stop: int) -> Tensor:
    """Elements `start` to `stop` of the run that the file holds of a weight."""
    with safe_open(path, framework="pt") as file:
        run: Tensor = file.get_slice(f"{kind}/{name}")[start:stop]
        return run


def _head(places: Sequence[Place]) -> bytes:
    """Length and JSON header of a safetensors file, filled up to a multiple of 8 bytes with blanks."""
    listed = [(place.name, place.part, place.parts, place.shape, place.start, place.stop) for place in places]
    header: dict[str, object] = {"__metadata__": {"places": json.dumps(listed)}}
    end = 0
    for place in places:
        length = place.stop - place.start
        for kind in KINDS:
            begin, end = end, end + length * _FP32_BYTES
            header[f"{kind}/{place.name}"] = {"dtype": "F32", "shape": [length], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(run: Tensor, place: Place) -> memoryview:
    if run.dtype != torch.float32 or run.shape != (place.stop - place.start,):
        raise ValueError(f"{place.name}: {run.dtype} of shape {tuple(run.shape)} is no fp32 run of {place}")
    return run.detach().cpu().contiguous().view(torch.uint8).numpy().data
