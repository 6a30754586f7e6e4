"""Where the randomness of generation comes from: keyed by what it is for, never by the place in a batch."""

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor

_NOISE: Final = 0
_CHOICE: Final = 1


class Draws(Protocol):
    """A source of the noise of the head and of the choices among its samples."""

    def head_noise(self, prompt: int, step: int, attempt: int, num_samples: int) -> Tensor:
        """Return noise_Nn for `num_samples` samples of the patch drawn in this step after this prompt."""
        ...

    def choice(self, prompt: int, step: int) -> float:
        """Return the number in [0, 1) that chooses among the samples."""
        ...


class KeyedDraws:
    """Random numbers from (seed, stream, step, attempt): the same ones alone, in a batch, and in any order.

    The noise of N samples begins with the noise of fewer, so a larger pool contains the smaller one.

    Args:
        seed: root of all draws.
        noise_size: n, the head's noise elements a sample.
        streams: random stream of each prompt; none gives prompt i the stream i.
    """

    def __init__(self, seed: int, noise_size: int, streams: Sequence[int] | None = None) -> None:
        self._seed, self._noise_size, self._streams = seed, noise_size, streams

    def _random(self, purpose: int, prompt: int, step: int, attempt: int = 0) -> np.random.Generator:
        stream = prompt if self._streams is None else self._streams[prompt]
        key = np.random.SeedSequence((self._seed, purpose, stream, step, attempt))
        return np.random.Generator(np.random.SFC64(key))

    def head_noise(self, prompt: int, step: int, attempt: int, num_samples: int) -> Tensor:
        """Noise of the energy head: U[-0.5, 0.5) in fp32, shape (N, n)."""
        random = self._random(_NOISE, prompt, step, attempt)
        uniform_Nn = random.random((num_samples, self._noise_size), dtype=np.float32)
        return torch.from_numpy(uniform_Nn) - 0.5

    def choice(self, prompt: int, step: int) -> float:
        """A number in [0, 1) of its own stream."""
        return float(self._random(_CHOICE, prompt, step).random())
