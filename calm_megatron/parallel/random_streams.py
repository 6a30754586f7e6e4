"""Randomness keyed by what it is for: (seed, purpose, step, global sequence index).

No draw depends on a rank, a micro-batch or how often it is made: every layout sees the same noise, and recomputation
draws it again. A sequence's patches and head samples lie along the axes of one draw, so a rank that needs only some of
them slices the same numbers.

On CPU the streams are numpy's SFC64; on GPU torch's Philox on the device, which gives other numbers than the CPU.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

Shape = Sequence[int]
_TOGETHER = 1 << 17
"""Normal numbers that are formed at a time, about: 512 KiB, which caches hold."""


class RandomStreams:
    """Noise of one run; `seed` is the run's."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        self.device = device

    def uniform(self, purpose: str, step: int, sequence_ids: Sequence[int], shape: Shape) -> Tensor:
        """U[0, 1) fp32 of shape (len(sequence_ids), *shape), one independent stream per sequence."""
        return self._draw(purpose, step, sequence_ids, shape, _cpu_uniform, torch.rand)

    def normal(self, purpose: str, step: int, sequence_ids: Sequence[int], shape: Shape) -> Tensor:
        """N(0, 1) fp32 of shape (len(sequence_ids), *shape), one independent stream per sequence."""
        return self._draw(purpose, step, sequence_ids, shape, _cpu_normal, torch.randn)

    def normal_blocks(self, purpose: str, step: int, sequence: int, shapes: Iterable[Shape]) -> Iterator[Tensor]:
        """The numbers of one sequence's `normal`, block by block, each drawn when it is asked for.

        On CPU the blocks together are the numbers of one draw, wherever they are cut. On GPU each cut gives others.
        """
        seed = key(self.seed, purpose, step, sequence)
        if self.device.type == "cpu":
            on_cpu = np.random.Generator(np.random.SFC64(seed))
            for shape in shapes:
                block = torch.empty(tuple(shape))
                _cpu_normal(on_cpu, block)
                yield block
        else:
            on_device = torch.Generator(self.device).manual_seed(seed >> 65)
            for shape in shapes:
                yield torch.randn(tuple(shape), generator=on_device, device=self.device)

    def _draw(
        self,
        purpose: str,
        step: int,
        sequence_ids: Sequence[int],
        shape: Shape,
        on_cpu: Callable[[np.random.Generator, Tensor], None],
        on_device: Callable[..., Tensor],
    ) -> Tensor:
        if self.device.type == "cpu":
            noise = torch.empty((len(sequence_ids), *shape))
            for row, sequence in enumerate(sequence_ids):
                on_cpu(np.random.Generator(np.random.SFC64(key(self.seed, purpose, step, sequence))), noise[row])
            return noise
        draws = []
        for sequence in sequence_ids:
            generator = torch.Generator(self.device).manual_seed(key(self.seed, purpose, step, sequence) >> 65)
            draws.append(on_device(tuple(shape), generator=generator, device=self.device))
        return torch.stack(draws)


def key(*parts: int | str) -> int:
    """A 128-bit key from the parts: equal for equal parts, unrelated for different ones."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def initial_normal(seed: int, name: str, shape: Shape) -> Tensor:
    """N(0, 1) fp32 on CPU for the initial value of the whole (uncut) weight `name`."""
    values = torch.empty(tuple(shape))
    _initial_stream(seed, name).standard_normal(out=values.numpy(), dtype=np.float32)
    return values


def initial_uniform(seed: int, name: str, shape: Shape) -> Tensor:
    """U[0, 1) fp32 on CPU for the initial value of the whole (uncut) weight `name`."""
    values = torch.empty(tuple(shape))
    _cpu_uniform(_initial_stream(seed, name), values)
    return values


def _initial_stream(seed: int, name: str) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(key(seed, "initial weight", name)))


def _cpu_uniform(generator: np.random.Generator, out: Tensor) -> None:
    generator.random(out=out.numpy(), dtype=np.float32)


def _cpu_normal(generator: np.random.Generator, out: Tensor) -> None:
    """Fill a tensor by the transform of Box and Muller (1958), which takes a third of the time of numpy's normals.

    Each row (index of the first axis; a tensor of one axis is one row) takes its own uniform numbers, so rows that are
    drawn apart are those that are drawn together. With uniform numbers of 24 bits, as torch's normals have, none lies
    further out than 5.8.
    """
    rows_Rn = out.view(len(out), -1) if out.dim() > 1 and out.numel() else out.view(1, -1)
    count = rows_Rn.shape[1]
    half = (count + 1) // 2
    for part_rn in rows_Rn.split(max(1, _TOGETHER // max(1, count))):
        uniform_rn = torch.empty(len(part_rn), 2 * half)
        _cpu_uniform(generator, uniform_rn)
        radius_rh = uniform_rn[:, :half].neg().log1p_().mul_(-2).sqrt_()
        angle_rh = uniform_rn[:, half:] * (2 * math.pi)
        torch.mul(radius_rh, angle_rh.cos(), out=part_rn[:, :half])
        torch.mul(radius_rh[:, : count - half], angle_rh.sin_()[:, : count - half], out=part_rn[:, half:])
