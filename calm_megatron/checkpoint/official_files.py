"""The files of an official checkpoint: config and weights, read one tensor at a time, memory-mapped.

A checkpoint is a folder with `config.json` and `model.safetensors` or `pytorch_model.bin`, whole or in shards with an
index; or one of these files of weights, with `config.json` beside it.
"""

import json
import pickle
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from calm_megatron.config.errors import UserError

CONFIG = "config.json"
_KINDS = (("model.safetensors", "model.safetensors.index.json"), ("pytorch_model.bin", "pytorch_model.bin.index.json"))
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_ENDINGS = (".safetensors", ".bin", ".index.json")


def is_official(path: Path) -> bool:
    """Whether a path holds an official checkpoint, in contrast to one of ours."""
    return (path if path.is_dir() else path.parent).joinpath(CONFIG).is_file() and (
        path.is_dir() or path.name.endswith(_ENDINGS)
    )


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    """None for one that holds no weights, such as whole numbers."""
    file: Path
    read: Callable[[], Tensor]


class OfficialFiles:
    """An official checkpoint, opened; its tensors stay in their files.

    Args:
        path: folder, file of weights, or index.

    Raises:
        UserError: there is none, or a file of it is missing, damaged, or not what the index says.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.folder = self.path if self.path.is_dir() else self.path.parent
        self.config = self._read_json(self.folder / CONFIG)
        self.tensors: dict[str, Stored] = {}
        for file, names in self._files().items():
            self._add(file, names)

    def read(self, name: str) -> Tensor:
        """A tensor as it is stored."""
        return self.tensors[name].read()

    def _files(self) -> dict[Path, set[str] | None]:
        """Files of weights, and what the index says is in each; none without an index."""
        if not self.path.is_dir():
            if not self.path.is_file():
                raise UserError("there is no such file", str(self.path), "name a folder or file of a checkpoint")
            return self._shards(self.path) if self.path.name.endswith(".index.json") else {self.path: None}
        for single, index in _KINDS:
            if (self.path / index).is_file():
                return self._shards(self.path / index)
            if (self.path / single).is_file():
                return {self.path / single: None}
        names = " nor ".join(name for kind in _KINDS for name in kind)
        raise UserError(f"there is neither {names}", str(self.path), "name a folder with an official checkpoint")

    def _shards(self, index: Path) -> dict[Path, set[str] | None]:
        table = self._read_json(index).get("weight_map")
        if not isinstance(table, dict) or not table or not all(isinstance(file, str) for file in table.values()):
            raise UserError("the index has no weight_map of names and files", str(index), _AGAIN)
        shards: dict[Path, set[str] | None] = {}
        for file in sorted(set(table.values())):
            path = index.parent / file
            if Path(file).name != file or not path.is_file():
                raise UserError(f"the index names the file {file}, which is not there", str(index), _AGAIN)
            shards[path] = {name for name, place in table.items() if place == file}
        return shards

    def _add(self, file: Path, names: set[str] | None) -> None:
        try:
            found = dict(_safetensors(file) if file.suffix == ".safetensors" else _pickled(file))
        except (OSError, ValueError, RuntimeError, SafetensorError, EOFError, struct.error) as error:
            first = str(error).strip().partition("\n")[0]
            raise UserError(f"the file of weights cannot be read: {first}", str(file), _AGAIN) from None
        except pickle.UnpicklingError as error:
            first = str(error).strip().partition("\n")[0]
            raise UserError(
                f"the file holds more than weights, which are all that is read of a pickle: {first}",
                str(file),
                "have it saved again as safetensors, by someone who trusts it",
            ) from None
        if names is not None and names != found.keys():
            wrong = [f"{name} is not in it" for name in sorted(names - found.keys())]
            wrong += [f"{name} is in it, and not in the index" for name in sorted(found.keys() - names)]
            raise UserError("the index and the file differ:\n  " + "\n  ".join(wrong), str(file), _AGAIN)
        self.tensors |= found

    def _read_json(self, file: Path) -> dict[str, Any]:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"there is no {file.name}", str(file.parent), "name an official checkpoint") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{file.name} cannot be read: {error}", str(file), _AGAIN) from None
        if not isinstance(content, dict):
            raise UserError(f"{file.name} holds no settings by name", str(file), _AGAIN)
        return content


_AGAIN = "fetch the checkpoint again"


def _safetensors(file: Path) -> Iterator[tuple[str, Stored]]:
    def reader(name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            # Opened for each tensor, so that the pages of the one before are let go.
            with safe_open(file, framework="pt") as opened:
                tensor: Tensor = opened.get_tensor(name)
                return tensor

        return read

    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118  # it is no mapping
            part = opened.get_slice(name)
            yield name, Stored(tuple(part.get_shape()), _DTYPES.get(part.get_dtype()), file, reader(name))


def _pickled(file: Path) -> Iterator[tuple[str, Stored]]:
    content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(content, dict):
        raise ValueError("it holds no tensors by name")
    for name, tensor in content.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} is no tensor")
        dtype = tensor.dtype if tensor.dtype in _DTYPES.values() else None
        yield str(name), Stored(tuple(tensor.shape), dtype, file, partial(content.__getitem__, name))
