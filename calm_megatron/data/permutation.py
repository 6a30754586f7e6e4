"""Orders that are a pure function of a key.

Built on the raw output of a numpy bit generator, which numpy promises never to change; `Generator.permutation`
carries no such promise.
"""

from math import isqrt

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 8
_64_BITS = (1 << 64) - 1


def permutation(count: int, seed: int, *key: int) -> NDArray[np.int64]:
    """A random order of 0 .. `count` - 1, always the same for the same seed and key.

    Args:
        count: how many.
        seed: root of the randomness.
        key: numbers that tell uses of the same seed apart, such as a purpose and an epoch.
    """
    generator = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key))
    raw = np.asarray(generator.random_raw(count), dtype=np.uint64)
    return np.argsort(raw, kind="stable").astype(np.int64)


def shuffled(numbers: NDArray[np.int64], key: int) -> NDArray[np.int64]:
    """The numbers in an order that follows from them and the key; for a few, and much quicker than `permutation`.

    They are sorted by 64 bits that depend on all of the number's and the key's (SplitMix64, as in `KeyedOrder`).
    """
    bits = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    bits = (bits ^ bits >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ bits >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return numbers[(bits ^ bits >> np.uint64(31)).argsort(kind="stable")]


def _mixed(number: int) -> int:
    """64 bits that all depend on all of the number's (the finaliser of SplitMix64, Steele et al. 2014)."""
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & _64_BITS
    number = (number ^ number >> 27) * 0x94D049BB133111EB & _64_BITS
    return number ^ number >> 31


class KeyedOrder:
    """A random order of 0 .. `count` - 1 of which any entry can be computed by itself, so it takes no memory.

    A Feistel network on pairs of numbers below the root of `count`, rounded up; what lands beyond `count` goes through
    it again, which keeps it an order (cycle walking, Black and Rogaway 2002).

    Args:
        count: how many, from 1.
        seed: root of the randomness.
        key: numbers that tell uses of the same seed apart.
    """

    def __init__(self, count: int, seed: int, *key: int) -> None:
        self._count, self._root = count, isqrt(count - 1) + 1
        state = np.random.SeedSequence(seed, spawn_key=key).generate_state(_ROUNDS, np.uint64)
        self._keys: list[int] = state.tolist()

    def __getitem__(self, place: int) -> int:
        """Entry at a place."""
        if not 0 <= place < self._count:
            raise IndexError(f"place {place} of {self._count}")
        root = self._root
        while True:
            left, right = divmod(place, root)
            for key in self._keys:
                left, right = right, (left + _mixed(right + key & _64_BITS)) % root
            place = left * root + right
            if place < self._count:
                return place
