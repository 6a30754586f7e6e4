"""Sequences of whole patches from a data set, packed when they are read.

An epoch is one pass over the documents: they are put in a shuffled order, laid end to end, and cut into sequences of
T tokens, which are taken in a shuffled order of their own. Aligned, each document (with its end-of-document id) is
filled with pad ids up to whole patches, so that no patch straddles two documents; otherwise documents follow each
other without fill, as in the official code. What is left at the end of an epoch and fills no sequence is dropped,
another piece in each epoch.

Everything is a pure function of (data set, documents, K, T, seed, sample index): nothing is cached on disk, and no
rank needs another.

Letters: D documents, T tokens of a sequence, K tokens of a patch, P = T / K patches.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calm_megatron.config.checks import nearest_multiples
from calm_megatron.config.errors import UserError
from calm_megatron.data.indexed import IndexedCorpus
from calm_megatron.data.permutation import permutation

_DOCUMENT_ORDER, _SEQUENCE_ORDER = 0, 1


class PatchedSequence(NamedTuple):
    """One sequence."""

    ids_T: NDArray[np.int64]
    documents_P: NDArray[np.int32]
    """Number within the sequence, counted from 0, of the document that each patch's first token belongs to."""


@dataclass(frozen=True)
class _Epoch:
    """One pass over the documents."""

    number: int
    order_D: NDArray[np.int64]
    """Document at each place of the stream."""
    starts_D1: NDArray[np.int64]
    """Where in the stream, in tokens with fill, the document at each place begins; then the length of the stream."""
    sequences: NDArray[np.int64]
    """Place in the stream, in sequences, of each sample of the epoch."""


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


class PatchedDataset:
    """Sequences of T tokens from some documents of a data set.

    Args:
        corpus: the data set.
        documents: indices of the documents that belong to this split.
        name: of the split, for messages.
        patch_size: K.
        seq_length: T, a multiple of K.
        align_documents: fill documents up to whole patches.
        seed: decides the order; none keeps documents and sequences in their order, and there is one epoch only.

    Raises:
        UserError: T is no multiple of K, or the documents do not fill one sequence.
    """

    def __init__(
        self,
        corpus: IndexedCorpus,
        documents: NDArray[np.int64],
        *,
        name: str,
        patch_size: int,
        seq_length: int,
        align_documents: bool,
        seed: int | None,
    ) -> None:
        check_lengths(seq_length, patch_size)
        self.name = name
        self.patch_size = patch_size
        self.seq_length = seq_length
        self.corpus = corpus
        self._documents_D = documents
        self._unit = patch_size if align_documents else 1
        self._seed = seed
        self._epoch: _Epoch | None = None
        lengths_D = corpus.lengths_D[documents]
        self.tokens = int(lengths_D.sum())
        """Tokens of the documents, without fill."""
        self.filled_tokens = int(self._filled(lengths_D).sum())
        """Tokens of the documents, with fill."""
        self.sequences_per_epoch = self.filled_tokens // seq_length
        if not self.sequences_per_epoch:
            raise UserError(
                f"the {name} documents do not fill one sequence: they have {self.filled_tokens:,} tokens, "
                f"{seq_length:,} are needed",
                str(corpus.prefix),
                f"shorten data.seq_length, give more text, or a larger share to {name} in data.split",
            )

    def _filled(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        return -(-lengths // self._unit) * self._unit

    def _epoch_of(self, number: int) -> _Epoch:
        if self._epoch is None or self._epoch.number != number:
            count = len(self._documents_D)
            if self._seed is None:
                order, sequences = self._documents_D, np.arange(self.sequences_per_epoch)
            else:
                order = self._documents_D[permutation(count, self._seed, _DOCUMENT_ORDER, number)]
                sequences = permutation(self.sequences_per_epoch, self._seed, _SEQUENCE_ORDER, number)
            starts = np.zeros(count + 1, dtype=np.int64)
            np.cumsum(self._filled(self.corpus.lengths_D[order]), out=starts[1:])
            self._epoch = _Epoch(number, order, starts, sequences)
        return self._epoch

    def sequence(self, index: int) -> PatchedSequence:
        """Sample `index` of the run: ids_T (int64) and documents_P (int32).

        Args:
            index: counted from 0 over all epochs.

        Raises:
            IndexError: it is negative, or beyond the only epoch of an unshuffled set.
        """
        if index < 0 or (self._seed is None and index >= self.sequences_per_epoch):
            raise IndexError(f"sample {index} of {self.sequences_per_epoch}")
        epoch = self._epoch_of(index // self.sequences_per_epoch)
        start = int(epoch.sequences[index % self.sequences_per_epoch]) * self.seq_length
        stop = start + self.seq_length
        first = int(np.searchsorted(epoch.starts_D1, start, side="right")) - 1
        last = int(np.searchsorted(epoch.starts_D1, stop, side="left"))
        ids_T = np.full(self.seq_length, self.corpus.facts.pad_id, dtype=np.int64)
        for place in range(first, last):
            self._copy(epoch, place, start, ids_T)
        return PatchedSequence(ids_T, self._documents(epoch, first, last, start))

    def _copy(self, epoch: _Epoch, place: int, start: int, ids_T: NDArray[np.int64]) -> None:
        """Copy what the sequence at `start` holds of the document at `place`; its fill is there already."""
        document = int(epoch.order_D[place])
        offset = int(epoch.starts_D1[place]) - start
        begin = max(0, -offset)
        end = min(int(self.corpus.lengths_D[document]), self.seq_length - offset)
        if begin < end:
            ids_T[offset + begin : offset + end] = self.corpus.read(document, begin, end)

    def _documents(self, epoch: _Epoch, first: int, last: int, start: int) -> NDArray[np.int32]:
        firsts_P = start + np.arange(0, self.seq_length, self.patch_size)
        places_P = np.searchsorted(epoch.starts_D1[first:last], firsts_P, side="right")
        # Without alignment a short document may hold no patch's first token; numbers stay consecutive all the same.
        return np.cumsum(np.diff(places_P, prepend=places_P[0]) > 0, dtype=np.int32)
