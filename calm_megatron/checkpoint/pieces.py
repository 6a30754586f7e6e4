"""What a checkpoint holds of each weight: runs of elements of the parts that the tensor ranks hold.

A weight is cut among tensor ranks by the table of names, and each part is one row of elements, which data ranks share
in runs (ZeRO). So a place is a part and a run, and any layout's places can be made of any other's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

KINDS = ("weight", "exp_avg", "exp_avg_sq")
"""Of each element: the fp32 master weight and Adam's two moments."""


@dataclass(frozen=True)
class Place:
    """A run of elements of one part of a weight, the part flattened."""

    name: str
    """Of the weight."""
    part: int
    """Tensor rank that holds the part; 0 of a copy."""
    parts: int
    """Into how many the weight is cut; 1 of a copy."""
    shape: tuple[int, ...]
    """Of the part."""
    start: int
    stop: int

    def share(self, number: int, count: int) -> "Place":
        """One of `count` runs of about equal length that make up this one."""
        length = self.stop - self.start
        start, stop = (self.start + length * edge // count for edge in (number, number + 1))
        return replace(self, start=start, stop=stop)


@dataclass(frozen=True)
class Piece:
    """A place and its values: flat views into the engine's memory, by kind."""

    place: Place
    values: Mapping[str, Tensor]

    def share(self, number: int, count: int) -> "Piece":
        """One of `count` runs of about equal length that make up this one."""
        place = self.place.share(number, count)
        run = slice(place.start - self.place.start, place.stop - self.place.start)
        return Piece(place, {kind: value[run] for kind, value in self.values.items()})
