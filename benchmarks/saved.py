"""Checkpoints for benchmarks: a state of some size, a place on the disk, and files that memory has forgotten."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calm_megatron.checkpoint.pieces import KINDS, Piece, Place
from calm_megatron.checkpoint.progress import Progress
from calm_megatron.checkpoint.saved_state import SavedState
from calm_megatron.checkpoint.store import CheckpointStore, Saved
from calm_megatron.parallel.grid import Grid
from calm_megatron.plan.report import read_for_plan

GB = 1e9
SHAPES = {f"layers.{number}.weight": (1024, 1024) for number in range(20)}
"""Of 252 MB in weights and moments."""
_RUN = (
    "model.type=ar", "model.patch_size=1", "model.vocab_size=4096", "model.num_layers=6", "model.hidden_size=1024",
    "model.ffn_hidden_size=2816", "model.num_attention_heads=16", "train.train_iters=100", "checkpoint.keep_last=1",
)  # fmt: skip
_BLOCK = 1 << 24


class State:
    """Weights and moments, as an engine on one rank would have them."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.values: dict[str, dict[str, Tensor]] = {
            name: {kind: torch.rand(torch.Size(shape).numel()) for kind in KINDS} for name, shape in shapes.items()
        }
        self.shapes = dict(shapes)
        self.bytes = sum(value.nbytes for values in self.values.values() for value in values.values())

    def own_pieces(self) -> list[Piece]:
        """All."""
        return [
            Piece(Place(name, 0, 1, self.shapes[name], 0, values["weight"].numel()), values)
            for name, values in self.values.items()
        ]

    def scalars(self) -> dict[str, Any]:
        """None but the count of updates."""
        return {"updates": 1}

    def restore(self, state: SavedState, scalars: Mapping[str, Any]) -> None:
        """Take over what was saved."""
        for piece in self.own_pieces():
            for kind, value in piece.values.items():
                value.copy_(state.read(kind, piece.place))

    def as_bytes(self) -> memoryview:
        """A copy of all values, one behind the other."""
        flat = torch.cat([value for values in self.values.values() for value in values.values()])
        return memoryview(flat.view(torch.uint8).numpy().data)

    def demand_taken_over(self, take_over: Callable[["State"], object]) -> None:
        """Stop unless a way of loading brings all values of this state.

        Raises:
            AssertionError: there is nothing to compare where one way loads something else.
        """
        other = State(self.shapes)
        take_over(other)
        for name, values in self.values.items():
            for kind, value in values.items():
                if not torch.equal(value, other.values[name][kind]):
                    raise AssertionError(f"{kind} of {name} is not what was saved")


@contextmanager
def on_disk() -> Iterator[Path]:
    """A folder that is no memory in disguise, as /tmp is on some machines."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield Path(folder)


def store(folder: Path, grid: Grid, *settings: str) -> CheckpointStore:
    """Checkpoints of a run in a folder, of which one is kept."""
    merged = dict(text.split("=", 1) for text in (*_RUN, f"run.directory={folder}", *settings))
    return CheckpointStore(read_for_plan([], [f"{name}={value}" for name, value in merged.items()]), grid)


def save(checkpoints: CheckpointStore, state: State, step: int) -> Saved:
    """Save and wait."""
    saved = checkpoints.begin(state, Progress(step)) or checkpoints.finish()
    assert saved is not None
    return saved


def write_plainly(path: Path, data: memoryview) -> None:
    """One sequential write, synced: what the disk can do."""
    with path.open("wb") as file:
        for begin in range(0, len(data), _BLOCK):
            file.write(data[begin : begin + _BLOCK])
        file.flush()
        os.fsync(file.fileno())


def torch_save(path: Path, state: State) -> None:
    """All values by torch.save, synced."""
    with path.open("wb") as file:
        torch.save(state.values, file)
        file.flush()
        os.fsync(file.fileno())


def torch_load(path: Path, state: State) -> None:
    """Take them over by torch.load."""
    for name, values in torch.load(path).items():
        for kind, value in values.items():
            state.values[name][kind].copy_(value)


def read_plainly(path: Path) -> None:
    """One sequential read."""
    block = bytearray(_BLOCK)
    with path.open("rb", buffering=0) as file:
        while file.readinto(block):
            pass


def seconds(function: Callable[[], object]) -> float:
    """That a call takes."""
    since = time.perf_counter()
    function()
    return time.perf_counter() - since


def forget(folder: Path) -> None:
    """Let the system drop the files of a folder, which are synced, from its cache, so that the disk is read."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
