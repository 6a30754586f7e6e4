"""Several data sets as one, in exact proportions and without an index.

Weights become whole shares of a period of at most 100,000 samples. A schedule of the period says which data set each
of its samples is of; it is that of the earliest deadline, where the j-th sample of a data set with share w is due
within floor(j / w) and ceil((j + 1) / w). All deadlines can be kept, since the shares add up to one (Baruah et al.
1996, on proportionate progress), so among any first n samples a data set has n w, rounded down or up.

The schedule repeats for ever, so sample i follows from i alone, in every layout; each data set goes through its
own epochs at its own pace.
"""

import hashlib
import heapq
from collections.abc import Sequence
from fractions import Fraction
from math import lcm

import numpy as np
from numpy.typing import NDArray

from calm_megatron.config.errors import UserError
from calm_megatron.data.meaning import Meaning
from calm_megatron.data.sequences import PatchedSequence, Sequences

LONGEST_PERIOD = 100_000


def whole_shares(weights: Sequence[float | int | Fraction]) -> list[int]:
    """Whole numbers in the proportions of the weights, that add up to at most `LONGEST_PERIOD`.

    Decimals are taken as they are written: 0.1 is a tenth. Proportions that no period so short holds are rounded to
    hundred-thousandths.

    Raises:
        UserError: a weight is not positive, or too small beside the others.
    """
    exact = [Fraction(repr(weight)) if isinstance(weight, float) else Fraction(weight) for weight in weights]
    if min(exact) <= 0:
        raise UserError("a data set of a blend has no share", f"weights {list(map(float, exact))}", "leave it out")
    total = sum(exact)
    shares = [weight / total for weight in exact]
    period = lcm(*(share.denominator for share in shares))
    if period > LONGEST_PERIOD:
        period = LONGEST_PERIOD
        floors = [int(share * period) for share in shares]
        rests = sorted(range(len(shares)), key=lambda k: (floors[k] - shares[k] * period, k))
        for k in rests[: period - sum(floors)]:
            floors[k] += 1
        if min(floors) == 0:
            raise UserError(
                f"a data set has less than one sample in {LONGEST_PERIOD:,}",
                f"weights {list(map(float, exact))}",
                "leave it out, or join it with another by tools/merge_datasets.py",
            )
        return floors
    return [int(share * period) for share in shares]


def schedule(shares: Sequence[int]) -> NDArray[np.int16]:
    """Which data set each sample of a period is of; see above."""
    period = sum(shares)
    released: list[list[int]] = [[] for _ in range(period)]
    for k, share in enumerate(shares):
        for j in range(share):
            released[j * period // share].append(k)
    due = [0] * len(shares)
    waiting: list[tuple[int, int]] = []
    chosen = np.empty(period, dtype=np.int16)
    for place in range(period):
        for k in released[place]:
            due[k] += 1
            heapq.heappush(waiting, (-(-due[k] * period // shares[k]), k))
        chosen[place] = heapq.heappop(waiting)[1]
    return chosen


class BlendedSequences:
    """Sequences of several data sets, endlessly, in the proportions of the shares.

    Args:
        parts: shuffled data sets, of the same K, T and meaning.
        shares: samples of each in a period, from `whole_shares`.
    """

    def __init__(self, parts: Sequence[Sequences], shares: Sequence[int]) -> None:
        self.parts, self.shares = list(parts), list(shares)
        self.patch_size, self.seq_length = parts[0].patch_size, parts[0].seq_length
        self.streams = None
        self.tokens = sum(part.tokens for part in parts)
        self.sequences_per_epoch = sum(part.sequences_per_epoch for part in parts)
        self._period = sum(shares)
        self._chosen = schedule(shares)
        self._rank = np.empty(self._period, dtype=np.int32)
        for k in range(len(shares)):
            self._rank[self._chosen == k] = np.arange(shares[k])

    @property
    def meaning(self) -> Meaning:
        """What the ids mean."""
        return self.parts[0].meaning

    @property
    def fingerprint(self) -> str:
        """Of the data sets and their shares."""
        content = [(part.fingerprint, share) for part, share in zip(self.parts, self.shares, strict=True)]
        return hashlib.sha256(repr(content).encode()).hexdigest()

    def place(self, index: int) -> tuple[int, int]:
        """Data set of a sample, and its number there."""
        periods, place = divmod(index, self._period)
        k = int(self._chosen[place])
        return k, periods * self.shares[k] + int(self._rank[place])

    def sequence(self, index: int) -> PatchedSequence:
        """Sample `index` of the run."""
        if index < 0:
            raise IndexError(f"sample {index}")
        k, own = self.place(index)
        return self.parts[k].sequence(own)


class JoinedSequences:
    """Sequences of several data sets that end, one set after the other: what a blend is validated on.

    Args:
        parts: unshuffled data sets, of the same K, T and meaning.
    """

    def __init__(self, parts: Sequence[Sequences]) -> None:
        self.parts = list(parts)
        self.patch_size, self.seq_length = parts[0].patch_size, parts[0].seq_length
        self.streams = None
        self.tokens = sum(part.tokens for part in parts)
        self._ends = np.cumsum([part.sequences_per_epoch for part in parts])
        self.sequences_per_epoch = int(self._ends[-1])

    @property
    def meaning(self) -> Meaning:
        """What the ids mean."""
        return self.parts[0].meaning

    @property
    def fingerprint(self) -> str:
        """Of the data sets in their order."""
        return hashlib.sha256(repr([part.fingerprint for part in self.parts]).encode()).hexdigest()

    def sequence(self, index: int) -> PatchedSequence:
        """Sequence `index`, counted over all data sets."""
        if not 0 <= index < self.sequences_per_epoch:
            raise IndexError(f"sample {index} of {self.sequences_per_epoch}")
        k = int(np.searchsorted(self._ends, index, side="right"))
        return self.parts[k].sequence(index - int(self._ends[k]) + self.parts[k].sequences_per_epoch)
