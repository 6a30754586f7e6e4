"""What training and evaluation read: sequences by their number, wherever they come from."""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from calm_megatron.config.checks import nearest_multiples
from calm_megatron.config.errors import UserError
from calm_megatron.data.meaning import Meaning


class PatchedSequence(NamedTuple):
    """One sequence."""

    ids_T: NDArray[np.int64]
    documents_P: NDArray[np.int32]
    """Number within the sequence, counted from 0, of the document that each patch's first token belongs to."""


class Sequences(Protocol):
    """A set of sequences of whole patches; sequence i is a pure function of the set and i."""

    @property
    def patch_size(self) -> int:
        """K."""

    @property
    def seq_length(self) -> int:
        """T, a multiple of K."""

    @property
    def tokens(self) -> int:
        """Tokens of the documents, without fill."""

    @property
    def sequences_per_epoch(self) -> int:
        """How many sequences one pass over the documents gives."""

    @property
    def meaning(self) -> Meaning:
        """What the ids mean."""

    @property
    def fingerprint(self) -> str:
        """Changes with the content."""

    @property
    def streams(self) -> int | None:
        """W, if sample i is of stream i % W and a process should stay with its streams; none if all serve alike."""

    def sequence(self, index: int) -> PatchedSequence:
        """Sequence `index` of the run: ids_T (int64) and documents_P (int32).

        Raises:
            IndexError: it is negative, or beyond the only epoch of a set that ends.
            UserError: the data are damaged.
        """


def check_lengths(seq_length: int, patch_size: int) -> None:
    """Refuse sequences that are not made of whole patches.

    Raises:
        UserError: `patch_size` does not divide `seq_length`.
    """
    if seq_length % patch_size:
        nearest = nearest_multiples(seq_length, patch_size)
        raise UserError(
            f"a sequence of {seq_length} tokens is not made of whole patches of {patch_size}",
            "data.seq_length",
            f"set data.seq_length to {nearest}",
        )


def filled(lengths: NDArray[np.integer], unit: int) -> NDArray[np.int64]:
    """Lengths of documents with the pads that fill them up to multiples of `unit`."""
    return -(-lengths.astype(np.int64) // unit) * unit


def cut_out(
    documents: list[tuple[int, NDArray[np.integer]]], start: int, seq_length: int, patch_size: int, pad_id: int
) -> PatchedSequence:
    """A sequence from the documents that reach into it.

    Args:
        documents: place of each in the stream, in tokens with fill, and its ids, in their order.
        start: of the sequence in the stream.
        seq_length: T.
        patch_size: K.
        pad_id: fills what no document covers.
    """
    ids_T = np.full(seq_length, pad_id, dtype=np.int64)
    begins_P = np.zeros(seq_length // patch_size, dtype=np.int32)
    for place, ids in documents:
        offset = place - start
        if offset >= 0:
            ids_T[offset : offset + len(ids)] = ids[: seq_length - offset]
            # The first patch whose first token is not of the document before. Without alignment a short document may
            # have none of its own; numbers stay consecutive all the same.
            begins_P[-(-offset // patch_size) : -(-offset // patch_size) + 1] = 1
        else:
            ids_T[: len(ids) + offset] = ids[-offset : seq_length - offset]
    begins_P[0] = 0
    return PatchedSequence(ids_T, begins_P.cumsum(dtype=np.int32))
