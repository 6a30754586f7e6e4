"""The noise of a head: an argument of everything that is random, drawn by name when it is used.

A head says what it draws, so that nothing between it and the random streams has to know the head. `count` numbers the
samples of a patch, R the patches of a batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from calm_megatron.losses.energy_score import NoiseBlock
from calm_megatron.parallel.random_streams import RandomStreams


class Noise(Protocol):
    """The randomness of R patches; a purpose gives the same numbers as often as it is asked."""

    def uniform(self, purpose: str, count: int, size: int) -> Tensor:
        """U[0, 1) in fp32, (count, R, size)."""
        ...

    def normal(self, purpose: str, count: int, size: int) -> Tensor:
        """N(0, 1) in fp32, (count, R, size)."""
        ...


class LossNoise(Noise, Protocol):
    """The randomness of a training loss, which may be too much to be there at once."""

    def normal_blocks(self, purpose: str, count: int, size: int, most: int, shared: int) -> Iterator[NoiseBlock]:
        """N(0, 1) for all R patches in their order, drawn block by block.

        Args:
            purpose: what for.
            count: numbered samples of a patch.
            size: numbers in a sample.
            most: patches in a block, at most.
            shared: consecutive patches of a sequence that have the same numbers, a block of any length; 1 gives each
                its own, those of `normal`.
        """
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

    def normal_blocks(self, purpose: str, count: int, size: int, most: int, shared: int) -> Iterator[NoiseBlock]:
        """N(0, 1) in fp32; no block reaches from one sequence into the next, so none depends on the batch."""
        length = most if shared == 1 else shared
        lengths = [min(length, self.patches - first) for first in range(0, self.patches, length)]
        shapes = [(patches if shared == 1 else 1, count, size) for patches in lengths]
        for sequence in self.sequences:
            blocks = self.streams.normal_blocks(f"{self.purpose} {purpose}", self.step, sequence, shapes)
            for patches, noise_rMZ in zip(lengths, blocks, strict=True):
                yield NoiseBlock(patches, noise_rMZ.transpose(0, 1))


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

    def normal_blocks(self, purpose: str, count: int, size: int, most: int, shared: int) -> Iterator[NoiseBlock]:
        """The numbers in pieces; a `ValueError` where they should be shared, as each patch has its own."""
        if shared != 1:
            raise ValueError(f"noise '{purpose}' is given for each patch, and cannot be shared by {shared}")
        for noise in self.normal(purpose, count, size).split(most, dim=1):
            yield NoiseBlock(noise.shape[1], noise.clone())


@dataclass(frozen=True)
class NoiseOfRows:
    """The noise of some of the rows."""

    whole: LossNoise
    rows: Tensor
    """Their numbers."""

    def uniform(self, purpose: str, count: int, size: int) -> Tensor:
        """U[0, 1), (count, these rows, size)."""
        return self.whole.uniform(purpose, count, size)[:, self.rows]

    def normal(self, purpose: str, count: int, size: int) -> Tensor:
        """N(0, 1), (count, these rows, size)."""
        return self.whole.normal(purpose, count, size)[:, self.rows]

    def normal_blocks(self, purpose: str, count: int, size: int, most: int, shared: int) -> Iterator[NoiseBlock]:
        """What these rows have of the blocks of the whole; a `ValueError` unless they are in order."""
        if (self.rows.diff() <= 0).any():
            raise ValueError("noise comes in blocks for rows in ascending order only")
        end = 0
        for patches, noise_MrZ in self.whole.normal_blocks(purpose, count, size, most, shared):
            first, end = end, end + patches
            own = self.rows[(self.rows >= first) & (self.rows < end)] - first
            if len(own):
                yield NoiseBlock(len(own), noise_MrZ if noise_MrZ.shape[1] != patches else noise_MrZ[:, own])
