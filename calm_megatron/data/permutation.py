"""Orders that are a pure function of a key.

Built on the raw output of a numpy bit generator, which numpy promises never to change; `Generator.permutation`
carries no such promise.
"""

import numpy as np
from numpy.typing import NDArray


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
