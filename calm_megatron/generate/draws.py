"""Where the randomness of generation comes from: keyed by what it is for, never by the place in a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor

_ENERGY: Final = 0
_CHOICE: Final = 1
_COINS: Final = 2
_TOKENS: Final = 3


class Draws(Protocol):
    """A source of the randomness of samples and of the choices among them.

    Samples come in rounds, the `attempt`s of a step.
    """

    def uniform(self, prompt: int, step: int, attempt: int, purpose: str, count: int, size: int) -> Tensor:
        """Return U[0, 1) of shape (count, size) for samples of the patch drawn in this step after this prompt."""
        ...

    def normal(self, prompt: int, step: int, attempt: int, purpose: str, count: int, size: int) -> Tensor:
        """Return N(0, 1) of shape (count, size) for them."""
        ...

    def token_uniform(self, prompt: int, step: int, attempt: int, num_samples: int) -> Tensor:
        """Return uniform_N in float64, numbers in [0, 1) of which each makes a token of a token-level model."""
        ...

    def choice(self, prompt: int, step: int) -> float:
        """Return the number in [0, 1) that chooses among the samples."""
        ...

    def coins(self, prompt: int, step: int, attempt: int, count: int) -> Sequence[float]:
        """Return the numbers in [0, 1) that the exact method tosses beside so many samples."""
        ...


class KeyedDraws:
    """Random numbers from (seed, stream, step, attempt): the same ones alone, in a batch, and in any order.

    The noise of N samples begins with the noise of fewer, so a larger pool contains the smaller one.

    Args:
        seed: root of all draws.
        streams: random stream of each prompt; none gives prompt i the stream i.
    """

    def __init__(self, seed: int, streams: Sequence[int] | None = None) -> None:
        self._seed, self._streams = seed, streams

    def _random(self, purpose: int, prompt: int, step: int, attempt: int = 0) -> np.random.Generator:
        stream = prompt if self._streams is None else self._streams[prompt]
        key = np.random.SeedSequence((self._seed, purpose, stream, step, attempt))
        return np.random.Generator(np.random.SFC64(key))

    def uniform(self, prompt: int, step: int, attempt: int, purpose: str, count: int, size: int) -> Tensor:
        """U[0, 1) in fp32, shape (count, size)."""
        random = self._random(_number(purpose), prompt, step, attempt)
        return torch.from_numpy(random.random((count, size), dtype=np.float32))

    def normal(self, prompt: int, step: int, attempt: int, purpose: str, count: int, size: int) -> Tensor:
        """N(0, 1) in fp32, shape (count, size)."""
        random = self._random(_number(purpose), prompt, step, attempt)
        return torch.from_numpy(random.standard_normal((count, size), dtype=np.float32))

    def token_uniform(self, prompt: int, step: int, attempt: int, num_samples: int) -> Tensor:
        """Numbers in [0, 1) in float64, shape (N,)."""
        return torch.from_numpy(self._random(_TOKENS, prompt, step, attempt).random(num_samples))

    def choice(self, prompt: int, step: int) -> float:
        """A number in [0, 1) of its own stream."""
        return float(self._random(_CHOICE, prompt, step).random())

    def coins(self, prompt: int, step: int, attempt: int, count: int) -> Sequence[float]:
        """Numbers in [0, 1) of their own stream."""
        tosses: list[float] = self._random(_COINS, prompt, step, attempt).random(count).tolist()
        return tosses


def _number(purpose: str) -> int:
    """Of what a head draws: that of the energy head is 0, others are spelt."""
    return _ENERGY if purpose == "head" else int.from_bytes(purpose.encode(), "big")


@dataclass(frozen=True)
class NoiseOfPrompts:
    """The head's noise (`model.noise.Noise`) in one attempt of a step, a row for each prompt."""

    draws: Draws
    prompts: Sequence[int]
    step: int
    attempt: int

    def uniform(self, purpose: str, count: int, size: int) -> Tensor:
        """U[0, 1), (count, R, size)."""
        rows = [self.draws.uniform(each, self.step, self.attempt, purpose, count, size) for each in self.prompts]
        return torch.stack(rows, dim=1)

    def normal(self, purpose: str, count: int, size: int) -> Tensor:
        """N(0, 1), (count, R, size)."""
        rows = [self.draws.normal(each, self.step, self.attempt, purpose, count, size) for each in self.prompts]
        return torch.stack(rows, dim=1)
