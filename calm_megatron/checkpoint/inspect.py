"""What is in a checkpoint, whether it is whole, and how two of them differ, one weight in memory at a time."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calm_megatron.checkpoint.load import find_checkpoint, saved_config, state_of
from calm_megatron.checkpoint.manifest import Manifest
from calm_megatron.checkpoint.meter import Meter, silent
from calm_megatron.checkpoint.progress import Progress
from calm_megatron.checkpoint.saved_state import SavedState
from calm_megatron.config.errors import UserError
from calm_megatron.config.files import to_tree

Facts = dict[str, Any]


@dataclass(frozen=True)
class InspectedFile:
    """One file of a checkpoint."""

    name: str
    bytes: int
    problem: str | None
    """None if it is as it was written."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a checkpoint says of itself; of a damaged one, what can still be read."""

    path: str
    problems: tuple[str, ...]
    """What is missing or damaged."""
    files: tuple[InspectedFile, ...] = ()
    layout: Facts = dataclasses.field(default_factory=dict)
    progress: Facts = dataclasses.field(default_factory=dict)
    engine: Facts = dataclasses.field(default_factory=dict)
    fingerprints: Facts = dataclasses.field(default_factory=dict)
    weights: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    """Shapes of the whole weights."""
    settings: Facts = dataclasses.field(default_factory=dict)
    """All settings of the run, as `section.key`."""
    chosen: tuple[str, ...] = ()
    """Names of those that are not the defaults."""

    @property
    def whole(self) -> bool:
        """Whether a run can go on from it."""
        return not self.problems

    @property
    def parameters(self) -> int:
        """Elements of all weights."""
        return sum(torch.Size(shape).numel() for shape in self.weights.values())


@dataclass(frozen=True)
class Difference:
    """A weight or moment that is not the same in two checkpoints."""

    name: str
    kind: str
    elements: int
    """That differ in any bit."""
    total: int
    largest: float | None
    """Absolute difference; none where one is not finite."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How two checkpoints differ; pairs are (first, second), with none for what is not there."""

    weights: tuple[Difference, ...]
    shapes: Facts
    """Pairs of shapes of weights that only one has, or that have another shape."""
    progress: Facts
    engine: Facts
    fingerprints: Facts
    layout: Facts
    settings: Facts

    @property
    def equal(self) -> bool:
        """Whether both hold the same state of a run, however it is cut and whatever the settings are."""
        return not (self.weights or self.shapes or self.progress or self.engine)


def inspect_checkpoint(path: str | Path, meter: Meter = silent) -> Inspection:
    """Read and verify a checkpoint, or the newest of a run folder.

    Raises:
        UserError: there is none.
    """
    folder = find_checkpoint(path)
    try:
        manifest = Manifest.load(folder)
    except UserError as error:
        return Inspection(path=str(folder), problems=(error.what,))
    files = tuple(_verified(manifest, folder, meter))
    bad = {file.name for file in files if file.problem}
    settings: Facts = {}
    chosen: tuple[str, ...] = ()
    weights: dict[str, tuple[int, ...]] = {}
    if "config.yaml" not in bad:
        config = saved_config(folder)
        settings, chosen = _flat(to_tree(config)), tuple(_chosen(config))
        if not any(shard.name in bad for shard in manifest.shards(folder)):
            state = state_of(folder, manifest)
            weights = {name: state.shape(name) for name in state.names()}
    progress = {} if "progress.json" in bad else dataclasses.asdict(Progress.load(folder / "progress.json"))
    return Inspection(
        path=str(folder),
        problems=tuple(file.problem for file in files if file.problem),
        files=files,
        layout=manifest.layout,
        progress=progress,
        engine=manifest.engine,
        fingerprints=dict(manifest.fingerprints),
        weights=weights,
        settings=settings,
        chosen=chosen,
    )


def compare_checkpoints(first: Inspection, second: Inspection, meter: Meter = silent) -> Comparison:
    """Hold two whole checkpoints against each other, weight by weight, whatever their layouts.

    Raises:
        UserError: one holds weights alone, the other moments, too.
    """
    both = sorted(first.weights.keys() & second.weights.keys())
    same = [name for name in both if first.weights[name] == second.weights[name]]
    ours, theirs = (state_of(Path(each.path), Manifest.load(Path(each.path))) for each in (first, second))
    if same and ours.kinds != theirs.kinds:
        raise UserError("only one of them has moments", f"{first.path} and {second.path}", "compare two of a kind")
    return Comparison(
        weights=tuple(_differences(ours, theirs, same, meter)),
        shapes=_pairs(first.weights, second.weights),
        **{
            name: _pairs(getattr(first, name), getattr(second, name))
            for name in ("progress", "engine", "fingerprints", "layout", "settings")
        },
    )


def _differences(ours: SavedState, theirs: SavedState, names: list[str], meter: Meter) -> Iterator[Difference]:
    """Which of these weights and their moments differ, bit by bit."""
    total = sum(torch.Size(ours.shape(name)).numel() for name in names) * len(ours.kinds) * torch.float32.itemsize
    done = 0
    for name in names:
        for kind in ours.kinds:
            mine, other = ours.whole(kind, name), theirs.whole(kind, name)
            done += mine.nbytes
            meter("compare", done, total)
            if not torch.equal(_bits(mine), _bits(other)):
                gap = (mine - other).abs().max().item()
                count = int((_bits(mine) != _bits(other)).sum())
                yield Difference(name, kind, count, mine.numel(), gap if gap < torch.inf else None)


def _verified(manifest: Manifest, folder: Path, meter: Meter) -> Iterator[InspectedFile]:
    total, done = sum(entry.bytes for entry in manifest.files), 0

    def tell(size: int) -> None:
        nonlocal done
        done += size
        meter("verify", done, total)

    for entry in manifest.files:
        yield InspectedFile(entry.name, entry.bytes, entry.problem(folder, tell))


def _bits(values: Tensor) -> Tensor:
    return values.view(torch.int32)


def _pairs(first: Facts, second: Facts) -> Facts:
    """By name, the values of both where they differ."""
    names = [*first, *(name for name in second if name not in first)]
    return {name: (first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)}


def _flat(tree: Facts, prefix: str = "") -> Facts:
    flat: Facts = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _chosen(section: Any, prefix: str = "") -> Iterator[str]:
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from _chosen(value, f"{prefix}{field.name}.")
        elif value != field.default:
            yield f"{prefix}{field.name}"
