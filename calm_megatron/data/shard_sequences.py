"""Sequences from tar shards, in an order that depends on nothing but the seed.

Training reads W streams side by side: sample i is the (i // W)-th of stream i % W. Each epoch puts the shards in a
shuffled order; the shards of all epochs in a row are dealt out to the streams in turns. Within a shard, documents are
put in a shuffled order, laid end to end with their fill, cut into sequences, and these taken in a shuffled order;
what fills no sequence is dropped. A data rank takes every R-th sample, so as long as R divides W it fetches the shards
of its own streams only, and so do the worker processes among which it divides them.

How many sequences a shard gives is known from the list of shards, so any sample is found without reading what lies
before it.
"""

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from calm_megatron.config.errors import UserError
from calm_megatron.data.fetch_shards import fetch_manifest, fetch_shard, url_of
from calm_megatron.data.meaning import Meaning
from calm_megatron.data.permutation import permutation
from calm_megatron.data.sequences import PatchedSequence, check_lengths, cut_out, filled
from calm_megatron.data.tar_shards import LARGEST_PATCH

_SHARD_ORDER, _DOCUMENT_ORDER, _SEQUENCE_ORDER = 10, 11, 12


@dataclass
class _Stream:
    """Where a stream is, and what it has in memory."""

    turn: int = 0
    """Shards of this stream before the present one."""
    first: int = 0
    """Number in the stream of the present shard's first sequence."""
    packed: "_Packed | None" = None
    ahead: "Future[_Packed] | None" = None
    """The shard behind it, being fetched."""

    def fetched_ahead(self) -> "_Packed | None":
        """The present shard, if it was fetched before its turn; what failed then is to be tried again."""
        ahead, self.ahead = self.ahead, None
        if ahead is None or ahead.exception() is not None:
            return None
        packed = ahead.result()
        return packed if packed.turn == self.turn else None


@dataclass(frozen=True)
class _Packed:
    """A shard in memory, its documents laid out."""

    turn: int
    documents: list[NDArray[np.integer]]
    starts: NDArray[np.int64]
    order: NDArray[np.int64]
    """Place in the shard, in sequences, of each of its samples."""


class ShardSequences:
    """Sequences of T tokens from the shards at a place, endlessly.

    Args:
        place: see `fetch_shards`.
        patch_size: K.
        seq_length: T, a multiple of K.
        align_documents: fill documents up to whole patches.
        seed: decides the order.
        streams: W, shards that are read side by side.

    Raises:
        UserError: the list of shards cannot be fetched, or no shard fills a sequence.
    """

    def __init__(
        self, place: str, *, patch_size: int, seq_length: int, align_documents: bool, seed: int, streams: int
    ) -> None:
        check_lengths(seq_length, patch_size)
        if patch_size > LARGEST_PATCH:
            raise UserError(f"shards are counted for patches of up to {LARGEST_PATCH} tokens", "model.patch_size")
        self.patch_size, self.seq_length = patch_size, seq_length
        self.streams: int | None = streams
        self._width = streams
        self._place, self._seed = place, seed
        self._unit = patch_size if align_documents else 1
        self._manifest = manifest = fetch_manifest(place)
        self._dtype = np.dtype(manifest.dtype)
        self._counts_S = [shard.filled_tokens[self._unit - 1] // seq_length for shard in manifest.shards]
        self.tokens = sum(shard.tokens for shard in manifest.shards)
        self.sequences_per_epoch = sum(self._counts_S)
        if not self.sequences_per_epoch:
            raise UserError(
                f"no shard fills one sequence of {seq_length:,} tokens",
                place,
                "shorten data.seq_length, or make larger shards with tools/make_shards.py",
            )
        self._streams = [_Stream() for _ in range(streams)]
        self._order_of = lru_cache(4)(self._order)
        self._fetcher: ThreadPoolExecutor | None = None

    @property
    def meaning(self) -> Meaning:
        """What the ids mean."""
        return self._manifest.meaning

    @property
    def fingerprint(self) -> str:
        """Of all shards in their order."""
        return hashlib.sha256("".join(shard.xxh3 for shard in self._manifest.shards).encode()).hexdigest()

    def _order(self, epoch: int) -> list[int]:
        return [int(shard) for shard in permutation(len(self._counts_S), self._seed, _SHARD_ORDER, epoch)]

    def _shard_of(self, stream: int, turn: int) -> tuple[int, int]:
        """Epoch and number of a stream's shard."""
        epoch, place = divmod(stream + self._width * turn, len(self._counts_S))
        return epoch, self._order_of(epoch)[place]

    def sequence(self, index: int) -> PatchedSequence:
        """Sample `index` of the run.

        Raises:
            IndexError: it is negative.
            UserError: its shard cannot be fetched or is damaged.
        """
        if index < 0:
            raise IndexError(f"sample {index}")
        number, stream = divmod(index, self._width)
        state = self._streams[stream]
        if number < state.first:
            state.turn, state.first = 0, 0
        while number >= state.first + (count := self._counts_S[self._shard_of(stream, state.turn)[1]]):
            state.turn, state.first = state.turn + 1, state.first + count
        packed = self._packed(stream, state)
        start = int(packed.order[number - state.first]) * self.seq_length
        first = int(np.searchsorted(packed.starts, start, side="right")) - 1
        last = int(np.searchsorted(packed.starts[:-1], start + self.seq_length, side="left"))
        reaching = list(zip(packed.starts[first:last].tolist(), packed.documents[first:last], strict=True))
        return cut_out(reaching, start, self.seq_length, self.patch_size, self.meaning.pad_id)

    def _packed(self, stream: int, state: _Stream) -> _Packed:
        """The present shard of a stream; the next one is fetched meanwhile."""
        if state.packed is None or state.packed.turn != state.turn:
            state.packed = state.fetched_ahead() or self._fetch(stream, state.turn)
            # Made late: a pool that was made before the worker processes are forked would have no threads there.
            self._fetcher = self._fetcher or ThreadPoolExecutor(1, thread_name_prefix="shards")
            state.ahead = self._fetcher.submit(self._fetch, stream, state.turn + 1)
        return state.packed

    def _fetch(self, stream: int, turn: int) -> _Packed:
        epoch, number = self._shard_of(stream, turn)
        facts = self._manifest.shards[number]
        documents = fetch_shard(self._place, facts, self._dtype)
        if any(int(ids.max()) >= self.meaning.vocab_size for ids in documents):
            raise UserError("an id is outside of the vocabulary", url_of(self._place, facts.name))
        order = permutation(len(documents), self._seed, _DOCUMENT_ORDER, epoch, number)
        starts = np.zeros(len(documents) + 1, dtype=np.int64)
        documents = [documents[place] for place in order]
        np.cumsum(filled(np.array([len(ids) for ids in documents]), self._unit), out=starts[1:])
        sequences = permutation(self._counts_S[number], self._seed, _SEQUENCE_ORDER, epoch, number)
        return _Packed(turn, documents, starts, sequences)
