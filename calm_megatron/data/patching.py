"""Sequences of whole patches from a data set, packed when they are read, without an index.

An epoch is one pass over the documents: they are put in a shuffled order, laid end to end, and cut into sequences of
T tokens, which are taken in a shuffled order of their own. Aligned, each document (with its end-of-document id) is
filled with pad ids up to whole patches, so that no patch straddles two documents; otherwise documents follow each
other without fill, as in the official code. What is left at the end of an epoch and fills no sequence is dropped,
another piece in each epoch.

To find a sequence without an index of all documents, they are shuffled in two steps: into groups of 256, each taken
from all over the data set (group g of G has documents g, g + G, g + 2 G, ...), groups in a shuffled order and each
group's documents in one of their own. Only the groups' sizes are kept; the documents of a group are laid out when one
of its sequences is read.

Everything is a pure function of (data set, documents, K, T, seed, sample index): nothing is cached on disk, and no
rank needs another.

Letters: D documents, G groups of them, T tokens of a sequence, K tokens of a patch, P = T / K patches.
"""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calm_megatron.config.errors import UserError
from calm_megatron.data.corpus_facts import bin_file
from calm_megatron.data.indexed import IndexedCorpus
from calm_megatron.data.meaning import Meaning
from calm_megatron.data.permutation import KeyedOrder, permutation, shuffled
from calm_megatron.data.sequences import PatchedSequence, check_lengths, cut_out, filled

GROUP_DOCUMENTS = 256
_DOCUMENT_ORDER, _SEQUENCE_ORDER, _GROUP_ORDER = 0, 1, 2
_GROUPS_KEPT = 4096


@dataclass(frozen=True)
class _Epoch:
    """One pass over the documents."""

    number: int
    order_G: NDArray[np.int64]
    """Group at each place of the stream."""
    starts_G1: NDArray[np.int64]
    """Where in the stream, in tokens with fill, the group at each place begins; then the length of the stream."""
    key: int
    """Of the order of the documents within the groups."""
    sequences: KeyedOrder | range
    """Place in the stream, in sequences, of each sample of the epoch."""


@dataclass(frozen=True)
class _Group:
    """The documents of a group, laid out."""

    order: NDArray[np.int64]
    """Document at each place."""
    starts: NDArray[np.int64]
    """Where in the stream each begins; then where the group ends."""


class PatchedDataset:
    """Sequences of T tokens from some documents of a data set.

    Args:
        corpus: the data set.
        documents: indices of the documents that belong to this split; none takes all.
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
        documents: NDArray[np.int64] | None,
        *,
        name: str,
        patch_size: int,
        seq_length: int,
        align_documents: bool,
        seed: int | None,
    ) -> None:
        check_lengths(seq_length, patch_size)
        self.name = name
        self.streams = None
        self.patch_size = patch_size
        self.seq_length = seq_length
        self.corpus = corpus
        self._pad_id, self._vocab_size = corpus.facts.pad_id, corpus.facts.vocab_size
        self._documents_D = documents
        self._count = len(corpus.lengths_D) if documents is None else len(documents)
        self._groups = -(-self._count // GROUP_DOCUMENTS)
        self._unit = patch_size if align_documents else 1
        self._seed = seed
        self._epoch: _Epoch | None = None
        self._laid_out: OrderedDict[tuple[int, int], _Group] = OrderedDict()
        self.tokens = 0
        """Tokens of the documents, without fill."""
        self._filled_G = np.zeros(self._groups, dtype=np.int64)
        for group in range(self._groups) if seed is None else ():
            self._count_in(self._members(group), slice(group, group + 1))
        for row in range(GROUP_DOCUMENTS) if seed is not None else ():
            members = self._documents(slice(row * self._groups, (row + 1) * self._groups))
            self._count_in(members, slice(0, len(members)))
        self.filled_tokens = int(self._filled_G.sum())
        """Tokens of the documents, with fill."""
        self.sequences_per_epoch = self.filled_tokens // seq_length
        if not self.sequences_per_epoch:
            raise UserError(
                f"the {name} documents do not fill one sequence: they have {self.filled_tokens:,} tokens, "
                f"{seq_length:,} are needed",
                str(corpus.prefix),
                f"shorten data.seq_length, give more text, or a larger share to {name} in data.split",
            )

    @property
    def meaning(self) -> Meaning:
        """What the ids mean."""
        return self.corpus.facts.meaning

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the ids."""
        return self.corpus.facts.bin_sha256

    def _documents(self, places: slice) -> NDArray[np.int64]:
        """Documents at these places of the split."""
        if self._documents_D is not None:
            return self._documents_D[places]
        return np.arange(*places.indices(self._count), dtype=np.int64)

    def _members(self, group: int) -> NDArray[np.int64]:
        """Documents of a group, unshuffled."""
        if self._seed is None:
            return self._documents(slice(group * GROUP_DOCUMENTS, (group + 1) * GROUP_DOCUMENTS))
        return self._documents(slice(group, None, self._groups))

    def _count_in(self, documents: NDArray[np.int64], groups: slice) -> None:
        lengths = self.corpus.lengths_D[documents]
        self.tokens += int(lengths.sum(dtype=np.int64))
        sizes = filled(lengths, self._unit)
        self._filled_G[groups] += sizes.sum() if self._seed is None else sizes

    def _epoch_of(self, number: int) -> _Epoch:
        if self._epoch is None or self._epoch.number != number:
            sequences: KeyedOrder | range = range(self.sequences_per_epoch)
            order, key = np.arange(self._groups), 0
            if self._seed is not None:
                state = np.random.SeedSequence(self._seed, spawn_key=(_DOCUMENT_ORDER, number))
                key = int(state.generate_state(1, np.uint64)[0])
                order = permutation(self._groups, self._seed, _GROUP_ORDER, number)
                sequences = KeyedOrder(self.sequences_per_epoch, self._seed, _SEQUENCE_ORDER, number)
            starts = np.zeros(self._groups + 1, dtype=np.int64)
            np.cumsum(self._filled_G[order], out=starts[1:])
            self._epoch = _Epoch(number, order, starts, key, sequences)
        return self._epoch

    def _group_at(self, epoch: _Epoch, place: int) -> _Group:
        key = (epoch.number, place)
        found = self._laid_out.get(key)
        if found is not None:
            return found
        order = self._members(int(epoch.order_G[place]))
        if self._seed is not None:
            order = shuffled(order, epoch.key)
        starts = np.empty(len(order) + 1, dtype=np.int64)
        starts[0] = epoch.starts_G1[place]
        np.cumsum(filled(self.corpus.lengths_D[order], self._unit), out=starts[1:])
        starts[1:] += starts[0]
        if len(self._laid_out) >= _GROUPS_KEPT:
            self._laid_out.popitem(last=False)  # The oldest: sequences are taken in a random order, so any would do.
        self._laid_out[key] = laid_out = _Group(order, starts)
        return laid_out

    def sequence(self, index: int) -> PatchedSequence:
        """Sample `index` of the run: ids_T (int64) and documents_P (int32).

        Args:
            index: counted from 0 over all epochs.

        Raises:
            IndexError: it is negative, or beyond the only epoch of an unshuffled set.
            UserError: an id is outside of the vocabulary.
        """
        if index < 0 or (self._seed is None and index >= self.sequences_per_epoch):
            raise IndexError(f"sample {index} of {self.sequences_per_epoch}")
        number, place = divmod(index, self.sequences_per_epoch)
        epoch = self._epoch_of(number)
        start = int(epoch.sequences[place]) * self.seq_length
        reaching = self._reaching_into(epoch, start)
        sequence = cut_out(reaching, start, self.seq_length, self.patch_size, self._pad_id)
        if (largest := int(sequence.ids_T.max())) >= self._vocab_size:
            raise UserError(
                f"id {largest} is outside of the vocabulary of {self._vocab_size:,}",
                str(bin_file(self.corpus.prefix)),
                "check the data set with tools/inspect_data.py --verify; make it again or copy it again",
            )
        return sequence

    def _reaching_into(self, epoch: _Epoch, start: int) -> list[tuple[int, NDArray[np.integer]]]:
        """The documents that reach into the sequence at `start`, each with its place in the stream."""
        stop = start + self.seq_length
        found: list[tuple[int, NDArray[np.integer]]] = []
        place = int(epoch.starts_G1.searchsorted(start, side="right")) - 1
        while place < self._groups and epoch.starts_G1[place] < stop:
            group = self._group_at(epoch, place)
            first = max(0, int(group.starts.searchsorted(start, side="right")) - 1)
            last = min(len(group.order), int(group.starts.searchsorted(stop, side="left")))
            documents = self.corpus.documents(group.order[first:last])
            found += zip(group.starts[first:last].tolist(), documents, strict=True)
            place += 1
        return found
