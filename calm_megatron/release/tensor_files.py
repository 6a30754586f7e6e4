"""Writes safetensors files in shards of a chosen size, in a stream: one tensor in memory at a time."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

INDEX = "model.safetensors.index.json"
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_ALIGNED = 8


@dataclass(frozen=True)
class TensorPlan:
    """A tensor that is to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Of its values."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class TensorFilesWriter:
    """Files that are being written: each tensor when its turn comes, in the order of the plan.

    Args:
        folder: where to.
        plan: all tensors.
        shard_bytes: of a file, at most; a larger tensor has a file of its own.
    """

    def __init__(self, folder: Path, plan: Sequence[TensorPlan], shard_bytes: int) -> None:
        self._folder = folder
        self._due = list(reversed(plan))
        self._shards = _shards(plan, shard_bytes)
        self._files = _file_names(len(self._shards))
        self._number = -1
        self._left = 0
        self._open: IO[bytes] | None = None

    def write(self, name: str, tensor: Tensor) -> None:
        """Append a tensor.

        Raises:
            ValueError: it is not the next one of the plan.
            OSError: the disk refuses.
        """
        due = self._due.pop() if self._due else None
        if due is None or (due.name, due.shape, due.dtype) != (name, tuple(tensor.shape), tensor.dtype):
            raise ValueError(f"{name} came in the place of {due}")
        if not self._left:
            self._next_file()
        assert self._open is not None
        self._open.write(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
        self._left -= 1

    def finish(self) -> None:
        """Bring the files to the disk, and their index, if they are several.

        Raises:
            ValueError: tensors are missing.
            OSError: the disk refuses.
        """
        self.close()
        if self._due:
            raise ValueError(f"{self._due[-1].name} is missing")
        if len(self._shards) > 1:
            table = {each.name: file for file, shard in zip(self._files, self._shards, strict=True) for each in shard}
            total = sum(each.bytes for shard in self._shards for each in shard)
            index = {"metadata": {"total_size": total}, "weight_map": table}
            (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def close(self) -> None:
        """Sync and close the file that is open."""
        if self._open is not None:
            self._open.flush()
            os.fsync(self._open.fileno())
            self._open.close()
            self._open = None

    def _next_file(self) -> None:
        self.close()
        self._number += 1
        shard = self._shards[self._number]
        self._left = len(shard)
        self._open = (self._folder / self._files[self._number]).open("wb")
        self._open.write(_head(shard))


def dtypes_by_name() -> Mapping[str, torch.dtype]:
    """The types that can be written, by the names of torch and of `config.json`."""
    return {str(dtype).removeprefix("torch."): dtype for dtype in _NAMES}


def _shards(plan: Sequence[TensorPlan], shard_bytes: int) -> list[list[TensorPlan]]:
    shards: list[list[TensorPlan]] = [[]]
    room = shard_bytes
    for tensor in plan:
        if shards[-1] and tensor.bytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(tensor)
        room -= tensor.bytes
    return shards


def _file_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _head(shard: Sequence[TensorPlan]) -> bytes:
    """Length and JSON header, filled up with blanks."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers opens no file without it
    end = 0
    for tensor in shard:
        begin, end = end, end + tensor.bytes
        header[tensor.name] = {"dtype": _NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text
