"""The noise of a head: an argument of everything that is random, drawn by name when it is used.

A head says what it draws, so that nothing between it and the random streams has to know the head. `count` numbers the
samples of a patch, R the patches of a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from calm_megatron.parallel.random_streams import RandomStreams


class Noise(Protocol):
    """The randomness of R patches; a purpose gives the same numbers as often as it is asked."""

    def uniform(self, purpose: str, count: int, size: int) -> Tensor:
        """U[0, 1) in fp32, (count, R, size)."""
        ...

    def normal(self, purpose: str, count: int, size: int) -> Tensor:
        """N(0, 1) in fp32, (count, R, size)."""
        ...


@dataclass(frozen=True)
class KeyedNoise:
    """Drawn from keyed streams when it is used: not every pipeline stage uses all of it."""

    streams: RandomStreams
    purpose: str
    """Of all of it, before the purposes of its parts."""
    step: int
    sequences: Sequence[int]
    patches: int
    """Predicted patches of each sequence; rows are in the order (sequence, patch)."""

    def uniform(self, purpose: str, count: int, size: int) -> Tensor:
        """U[0, 1) in fp32, (count, R, size)."""
        shape = (self.patches, count, size)
        drawn = self.streams.uniform(f"{self.purpose} {purpose}", self.step, self.sequences, shape)
        return drawn.flatten(0, 1).transpose(0, 1)

    def normal(self, purpose: str, count: int, size: int) -> Tensor:
        """N(0, 1) in fp32, (count, R, size)."""
        shape = (self.patches, count, size)
        drawn = self.streams.normal(f"{self.purpose} {purpose}", self.step, self.sequences, shape)
        return drawn.flatten(0, 1).transpose(0, 1)


@dataclass(frozen=True)
class GivenNoise:
    """Numbers that are known, by purpose: recorded ones, say."""

    numbers: Mapping[str, Tensor]
    """Each (count, R, size)."""

    def uniform(self, purpose: str, count: int, size: int) -> Tensor:
        """The numbers; a `ValueError` tells of others than were asked for."""
        found = self.numbers[purpose]
        if found.dim() != 3 or (len(found), found.shape[-1]) != (count, size):
            raise ValueError(f"noise '{purpose}' is {tuple(found.shape)}, not ({count}, R, {size})")
        return found

    normal = uniform


@dataclass(frozen=True)
class NoiseOfRows:
    """The noise of some of the rows."""

    whole: Noise
    rows: Tensor
    """Their numbers."""

    def uniform(self, purpose: str, count: int, size: int) -> Tensor:
        """U[0, 1), (count, these rows, size)."""
        return self.whole.uniform(purpose, count, size)[:, self.rows]

    def normal(self, purpose: str, count: int, size: int) -> Tensor:
        """N(0, 1), (count, these rows, size)."""
        return self.whole.normal(purpose, count, size)[:, self.rows]
