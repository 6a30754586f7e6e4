"""Randomness keyed by what it is for: (seed, purpose, step, global sequence index).

No draw depends on a rank, a micro-batch or how often it is made: every layout sees the same noise, and recomputation
draws it again. A sequence's patches and head samples lie along the axes of one draw, so a rank that needs only some of
them slices the same numbers.

On CPU uniform numbers are of numpy's SFC64, and normal ones of torch's Mersenne Twister, since torch forms
them in a third of the time. On GPU all are of torch's Philox on the device, which gives other numbers than the CPU.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

Shape = Sequence[int]
_LANES = 16
"""Normal numbers that torch forms together: rows of a multiple of them are the same wherever a draw is cut."""
_TWISTER_WORDS = 624


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
            on_cpu = _twister(seed)
            for shape in shapes:
                block = torch.empty(tuple(shape))
                _fill_normal(on_cpu, block)
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
        on_cpu: Callable[[int, Tensor], None],
        on_device: Callable[..., Tensor],
    ) -> Tensor:
        if self.device.type == "cpu":
            noise = torch.empty((len(sequence_ids), *shape))
            for row, sequence in enumerate(sequence_ids):
                on_cpu(key(self.seed, purpose, step, sequence), noise[row])
            return noise
        draws: list[Tensor] = []
        for sequence in sequence_ids:
            generator = torch.Generator(self.device).manual_seed(key(self.seed, purpose, step, sequence) >> 65)
            draws.append(on_device(tuple(shape), generator=generator, device=self.device))
        return torch.stack(draws) if draws else torch.empty((0, *shape), device=self.device)


def key(*parts: int | str) -> int:
    """A 128-bit key from the parts: equal for equal parts, unrelated for different ones."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def initial_normal(seed: int, name: str, shape: Shape) -> Tensor:
    """N(0, 1) fp32 on CPU for the initial value of the whole (uncut) weight `name`."""
    values = torch.empty(tuple(shape))
    _sfc64(key(seed, "initial weight", name)).standard_normal(out=values.numpy(), dtype=np.float32)
    return values


def initial_uniform(seed: int, name: str, shape: Shape) -> Tensor:
    """U[0, 1) fp32 on CPU for the initial value of the whole (uncut) weight `name`."""
    values = torch.empty(tuple(shape))
    _cpu_uniform(key(seed, "initial weight", name), values)
    return values


def _sfc64(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(seed))


def _cpu_uniform(seed: int, out: Tensor) -> None:
    _sfc64(seed).random(out=out.numpy(), dtype=np.float32)


def _cpu_normal(seed: int, out: Tensor) -> None:
    _fill_normal(_twister(seed), out)


def _fill_normal(generator: torch.Generator, out: Tensor) -> None:
    """Each row (index of the first axis; a tensor of one axis is one row) takes whole lanes.

    So rows that are drawn apart are those that are drawn together. Of 24 bits, none lies further out than 5.8.
    """
    rows_Rn = out.view(len(out), -1) if out.dim() > 1 and out.numel() else out.view(1, -1)
    lacking = -rows_Rn.shape[1] % _LANES
    if lacking:
        whole_Rn = torch.empty(len(rows_Rn), rows_Rn.shape[1] + lacking)
        rows_Rn.copy_(whole_Rn.normal_(generator=generator)[:, : rows_Rn.shape[1]])
    else:
        rows_Rn.normal_(generator=generator)


def _twister(seed: int) -> torch.Generator:
    """torch's generator with a whole state of its own; its seed alone would be 32 bits, too few for all keys."""
    generator = torch.Generator()
    state = _fresh_state().clone()
    words = np.random.SFC64(seed).random_raw(_TWISTER_WORDS // 2).view(np.uint32)
    # The state begins with seed, two counters and a place, 24 bytes together; then comes a word in each 8 bytes.
    state.view(torch.int64)[3 : 3 + _TWISTER_WORDS] = torch.from_numpy(words.astype(np.int64))
    generator.set_state(state)
    return generator


@functools.cache
def _fresh_state() -> Tensor:
    """Of a generator that has been seeded and not yet used, so that its words are twisted before the first draw."""
    return torch.Generator().manual_seed(0).get_state()
