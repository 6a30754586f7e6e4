"""Reads the state in a checkpoint for any layout, by the table of how each weight is cut."""

import itertools
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from calm_megatron.checkpoint.pieces import Place
from calm_megatron.checkpoint.shards import Shard
from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import BackboneConfig
from calm_megatron.model.sharding import Sharding


class SavedState:
    """The weights and moments in the shards of a checkpoint.

    Args:
        shards: the files.
        model: whose weights they are; none for a model that tensor ranks never cut.
    """

    def __init__(self, shards: Iterable[Path], model: BackboneConfig | None) -> None:
        self._shards = tuple(shards)
        self._model = model

    @cached_property
    def _runs(self) -> dict[str, list[tuple[Place, Shard]]]:
        """By weight, each saved run and its file."""
        runs: dict[str, list[tuple[Place, Shard]]] = defaultdict(list)
        for shard in map(Shard, self._shards):
            for place in shard.places:
                runs[place.name].append((place, shard))
        return runs

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """What there is of each weight: without the moments in a checkpoint of weights alone."""
        _, shard = next(iter(self._runs.values()))[0]
        return shard.kinds

    def names(self) -> list[str]:
        """Of all weights."""
        return sorted(self._runs)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a whole weight."""
        parts, shape = self._saved_parts(name), self._runs[name][0][0].shape
        return shape if parts == 1 else self._cut(0, parts).whole_shape(name, torch.Size(shape))

    def read(self, kind: str, place: Place) -> Tensor:
        """The flat values of a place of any layout, in fp32.

        Raises:
            UserError: the checkpoint lacks them.
        """
        saved_parts = self._saved_parts(place.name)
        if saved_parts == place.parts:
            # The same cut: only the wanted run is read.
            return self._run(kind, place.name, place.part, place.start, place.stop, place.shape)
        part = self.part(place.name, self.whole(kind, place.name), place.part, place.parts)
        return part.flatten()[place.start : place.stop]

    def whole(self, kind: str, name: str) -> Tensor:
        """A whole weight, or its moment, in fp32."""
        parts = self._saved_parts(name)
        pieces = []
        for part in range(parts):
            shape = next((place.shape for place, _ in self._runs[name] if place.part == part), ())
            pieces.append(self._run(kind, name, part, 0, torch.Size(shape).numel(), shape).view(shape))
        return pieces[0] if parts == 1 else self._cut(0, parts).whole(name, pieces)

    def twice(self) -> list[str]:
        """What is held by two files, where each element should be in one: by weight, and whether the copies differ.

        A copied weight that differs between tensor ranks would show here: which of them is right, nobody knows.
        """
        problems = []
        for name, runs in self._runs.items():
            ordered = sorted(runs, key=lambda run: (run[0].part, run[0].start))
            for (first, one), (second, other) in itertools.pairwise(ordered):
                end = min(first.stop, second.stop)
                if first.part == second.part and second.start < end:
                    ours, theirs = (torch.empty(end - second.start) for _ in range(2))
                    one.read_into(ours, "weight", name, second.start - first.start)
                    other.read_into(theirs, "weight", name, 0)
                    state = "is twice in" if torch.equal(ours, theirs) else "differs between"
                    problems.append(f"{name} {state} {one.path.name} and {other.path.name}")
        return problems

    def is_cut(self, name: str, parts: int) -> bool:
        """Whether so many tensor ranks hold different parts of a weight; else each holds a copy."""
        return self._model is not None and self._cut(0, parts).is_cut(name)

    def part(self, name: str, whole: Tensor, part: int, parts: int) -> Tensor:
        """One of the parts into which tensor ranks cut a whole weight, or its moment; of one part, the whole."""
        return whole if parts == 1 else self._cut(part, parts).part(name, whole)

    def _cut(self, part: int, parts: int) -> Sharding:
        assert self._model is not None, "only models with a table of cuts are cut"
        return Sharding(self._model, part, parts)

    def _saved_parts(self, name: str) -> int:
        if name not in self._runs:
            raise UserError(f"the checkpoint lacks the weight {name}", str(self._shards[0].parent))
        return self._runs[name][0][0].parts

    def _run(self, kind: str, name: str, part: int, start: int, stop: int, shape: tuple[int, ...]) -> Tensor:
        """Elements of a part as it was saved, from however many files."""
        values = torch.empty(stop - start)
        found = 0
        for saved, shard in self._runs[name]:
            first, last = max(start, saved.start), min(stop, saved.stop)
            if saved.part != part or first >= last:
                continue
            if saved.shape != shape:
                raise UserError(f"{name} has shape {saved.shape} in the checkpoint, not {shape}", str(shard.path))
            shard.read_into(values[first - start : last - start], kind, name, first - saved.start)
            found += last - first
        if found != stop - start:
            raise UserError(
                f"the checkpoint has {found} of {stop - start} elements of {name}", str(self._shards[0].parent)
            )
        return values
