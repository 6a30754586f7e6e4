"""Which documents are for training, validation and test.

Whole documents are dealt out, in an order shuffled by a fixed key: corpora often come sorted by source, and the end
of such a one is not like the rest. The order depends on nothing but the number of documents, so the same data set is
split alike in every run, whatever its seed, patch size or layout. Shares are counted in tokens, as documents differ
widely in length. Of larger data sets, every 65,536 documents are dealt out by themselves, so that memory stays small.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calm_megatron.config.errors import UserError
from calm_megatron.data.permutation import permutation

_KEY = 0x5B117
_PARTS = 3
_DEALT_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class DocumentSplit:
    """Indices of the documents of each part, ascending; empty for a part without a share."""

    train: NDArray[np.int64]
    valid: NDArray[np.int64]
    test: NDArray[np.int64]


def parse_split(split: str) -> tuple[float, float, float]:
    """Shares of training, validation and test, from Megatron's notation, such as "98,1,1"; they add up to 1.

    Raises:
        UserError: it is not one to three numbers, or they are negative, or all zero.
    """
    to_do = 'give up to three numbers for training, validation and test, such as "98,1,1"'
    try:
        weights = [float(part) for part in split.split(",")]
    except ValueError:
        raise UserError(f'"{split}" is not a split', "data.split", to_do) from None
    if len(weights) > _PARTS or not all(0 <= weight < float("inf") for weight in weights) or weights[0] == 0:
        raise UserError(f'"{split}" is not a split', "data.split", to_do + "; the first must be above zero")
    total = sum(weights)
    train, valid, test = [weight / total for weight in weights] + [0.0] * (_PARTS - len(weights))
    return train, valid, test


def split_documents(lengths_D: NDArray[np.integer], split: str) -> DocumentSplit:
    """Deal the documents out.

    Each document goes to the part in which its middle token lies, and each part with a share gets at least one.

    Args:
        lengths_D: tokens of each document.
        split: see `parse_split`.

    Raises:
        UserError: the split is malformed, or there are fewer documents than parts.
    """
    shares = parse_split(split)
    parts = sum(share > 0 for share in shares)
    if len(lengths_D) < parts:
        raise UserError(
            f"{len(lengths_D)} documents cannot be split into {parts} parts",
            f'data.split "{split}"',
            "make the data set from more documents (--document-separator cuts text files), or give parts their own "
            "data sets with data.train_data_path, valid_data_path and test_data_path",
        )
    # The last group takes the rest along, so that none is too small for its shares.
    firsts = range(0, max(1, len(lengths_D) // _DEALT_AT_ONCE) * _DEALT_AT_ONCE, _DEALT_AT_ONCE)
    ends = [*firsts[1:], len(lengths_D)]
    dealt = [_deal(lengths_D[first:end], shares, first) for first, end in zip(firsts, ends, strict=True)]
    return DocumentSplit(*(np.concatenate(parts) for parts in zip(*dealt, strict=True)))


def _deal(
    lengths_D: NDArray[np.integer], shares: tuple[float, float, float], first: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Deal out documents of which the first has the number `first`."""
    order = permutation(len(lengths_D), _KEY, *([first] if first else []))
    lengths = lengths_D[order].astype(np.int64)
    middles = (np.cumsum(lengths) - lengths / 2) / max(1, lengths.sum())
    first_test = min(int(np.searchsorted(middles, shares[0] + shares[1])), len(order) - (shares[2] > 0))
    first_test = first_test if shares[2] > 0 else len(order)
    first_valid = min(int(np.searchsorted(middles, shares[0])), first_test - (shares[1] > 0))
    first_valid = max(first_valid if shares[1] > 0 else first_test, 1)
    first_test = max(first_test, first_valid + (shares[1] > 0))
    parts = (order[:first_valid], order[first_valid:first_test], order[first_test:])
    train, valid, test = (first + np.sort(part) for part in parts)
    return train, valid, test
