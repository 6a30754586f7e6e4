"""Writes a checkpoint again, cut for other tensor ranks and into other files, with one weight in memory at a time.

A run needs no such copy to go on in another layout. It is for what reads files as they are: ranks that each read
their own, or programs that take a file for a tensor rank.
"""

import itertools
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from calm_megatron.checkpoint import manifest, publish
from calm_megatron.checkpoint.files import FileEntry
from calm_megatron.checkpoint.inspect import Inspection, compare_checkpoints, inspect_checkpoint
from calm_megatron.checkpoint.load import saved_config, state_of
from calm_megatron.checkpoint.manifest import Manifest
from calm_megatron.checkpoint.meter import Meter, silent
from calm_megatron.checkpoint.pieces import Place
from calm_megatron.checkpoint.saved_state import SavedState
from calm_megatron.checkpoint.shards import ShardWriter
from calm_megatron.checkpoint.store import newest_checkpoint
from calm_megatron.config.checks import check
from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import RunConfig

_OPEN_FILES = 256
"""Written side by side; the source is read once for each so many, and systems allow a process some thousand."""
_COPIED = ("progress.json", "config.yaml")


def reshard(source: str | Path, target: Path, tensor_size: int, files: int, meter: Meter = silent) -> Path:
    """Write an equivalent checkpoint; returns the source that was read.

    The memory that this takes is a few times the largest weight. The result is read back, compared with the source bit
    by bit, and only then given its name.

    Args:
        source: checkpoint, or run folder for its newest.
        target: folder of the new checkpoint; to let a run go on from it, `<run>/checkpoints/step_<step>`.
        tensor_size: tensor ranks to cut for.
        files: of each tensor rank.
        meter: hears of the progress.

    Raises:
        UserError: the source is damaged, its model cannot be cut so, or the target exists or cannot be written.
    """
    publish.demand_free(target)
    found = inspect_checkpoint(source, meter)
    if not found.whole:
        raise UserError("; ".join(found.problems), found.path, "take another checkpoint")
    checkpoint = Path(found.path)
    config, state = saved_config(checkpoint), state_of(checkpoint, Manifest.load(checkpoint))
    _check_cut(config, tensor_size, files)
    _check_name(target, found.progress["step"])
    # Marked, as a run at work takes `.step_N.partial` for what a killed save of its own has left.
    with publish.new_folder(target, "checkpoint", mark="reshard.") as aside:
        held = _places(state, tensor_size, files)
        shards = list(_write_shards(state, held, aside, meter))
        _write_facts(checkpoint, aside, shards, tensor_size, files)
        _demand_equal(found, inspect_checkpoint(aside, meter), meter)
    if target.parent.name == "checkpoints":
        with publish.refusals_told(target, "checkpoint"):
            publish.point_to(newest_checkpoint(target.parent), target.parent)
    return checkpoint


def _check_cut(config: RunConfig, tensor_size: int, files: int) -> None:
    """Refuse what a run with so many tensor ranks would refuse."""
    if tensor_size < 1 or files < 1:
        raise UserError(f"{tensor_size} tensor ranks with {files} files each are no layout", "", "give at least 1 each")
    layout = replace(
        config.parallel, tensor_model_parallel_size=tensor_size, pipeline_model_parallel_size=1, sequence_parallel=False
    )
    check(replace(config, parallel=layout))


def _check_name(target: Path, step: int) -> None:
    name = f"step_{step:08d}"
    if target.name != name and (target.parent.name == "checkpoints" or target.name.startswith("step_")):
        raise UserError(f"no run would find step {step} under this name", str(target), f"name it {name}")


def _places(state: SavedState, tensor_size: int, files: int) -> list[list[Place]]:
    """What each file holds: its share of a tensor rank's part of the cut weights, and its share of the copies."""
    held: list[list[Place]] = [[] for _ in range(tensor_size * files)]
    for name in state.names():
        shape = state.shape(name)
        parts = tensor_size if state.is_cut(name, tensor_size) else 1
        among = len(held) // parts
        for part in range(parts):
            cut = tuple(state.part(name, torch.empty(shape, device="meta"), part, parts).shape)
            place = Place(name, part, parts, cut, 0, torch.Size(cut).numel())
            for number in range(among):
                held[part * among + number].append(place.share(number, among))
    return [[place for place in places if place.start < place.stop] for places in held]


def _write_shards(
    state: SavedState, held: Sequence[Sequence[Place]], folder: Path, meter: Meter
) -> Iterator[FileEntry]:
    """All files of a group side by side, weight by weight, so that each weight is read once."""
    total = (
        sum(place.stop - place.start for places in held for place in places) * len(state.kinds) * torch.float32.itemsize
    )
    done = 0
    for first in range(0, len(held), _OPEN_FILES):
        group = range(first, min(first + _OPEN_FILES, len(held)))
        with ExitStack() as stack:
            files = {
                number: stack.enter_context(
                    ShardWriter(folder / f"rank_{number:05d}.safetensors", held[number], state.kinds)
                )
                for number in group
            }
            wanted: dict[str, list[tuple[Place, ShardWriter]]] = defaultdict(list)
            for number, file in files.items():
                for place in held[number]:
                    wanted[place.name].append((place, file))
            for name in sorted(wanted):
                for kind in state.kinds:
                    whole = state.whole(kind, name)
                    for part, runs in itertools.groupby(wanted[name], key=lambda run: run[0].part):
                        values = state.part(name, whole, part, wanted[name][0][0].parts).flatten()
                        for place, file in runs:
                            file.write(kind, place, values[place.start : place.stop])
                            done += (place.stop - place.start) * torch.float32.itemsize
                            meter("write", done, total)
            yield from (file.finish() for file in files.values())


def _write_facts(checkpoint: Path, aside: Path, shards: list[FileEntry], tensor_size: int, files: int) -> None:
    """What is not weights: the same but for layout and files."""
    for name in _COPIED:
        shutil.copyfile(checkpoint / name, aside / name)
    source = Manifest.load(checkpoint)
    layout = {
        "world_size": tensor_size * files,
        "tensor_model_parallel_size": tensor_size,
        "pipeline_model_parallel_size": 1,
        "data_parallel_size": files,
    }
    entries = (*shards, *(FileEntry.of(aside / name) for name in _COPIED))
    replace(source, layout=source.layout | layout, files=entries).save(aside)
    for name in (*_COPIED, manifest.FILE):
        publish.sync(aside / name)


def _demand_equal(source: Inspection, written: Inspection, meter: Meter) -> None:
    if not written.whole:
        raise OSError(f"it cannot be read back: {'; '.join(written.problems)}")
    found = compare_checkpoints(source, written, meter)
    if not found.equal:
        wrong = [*found.shapes, *(f"{each.kind}/{each.name}" for each in found.weights)]
        raise OSError(f"read back, it is not equal to the source: {', '.join(wrong)}")
