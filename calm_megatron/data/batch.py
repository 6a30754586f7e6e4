"""Micro-batches as tensors.

Letters: B sequences of a micro-batch, T tokens, P patches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from calm_megatron.data.sequences import Sequences


@dataclass(frozen=True)
class Batch:
    """One micro-batch, on the CPU."""

    ids_BT: torch.Tensor
    """int64."""
    documents_BP: torch.Tensor
    """int32: document of each patch, counted from 0 within each sequence."""
    sequence_ids_B: torch.Tensor
    """int64: sample index of each sequence within the run, the same in every layout; keys of its noise."""

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """All of it."""
        return self.ids_BT, self.documents_BP, self.sequence_ids_B


def read_batch(sequences: Sequences, indices: Sequence[int]) -> Batch:
    """The sequences with these sample indices; none gives a batch with B = 0."""
    patches = sequences.seq_length // sequences.patch_size
    ids_BT = np.empty((len(indices), sequences.seq_length), dtype=np.int64)
    documents_BP = np.empty((len(indices), patches), dtype=np.int32)
    for row, index in enumerate(indices):
        ids_BT[row], documents_BP[row] = sequences.sequence(index)
    return Batch(
        ids_BT=torch.from_numpy(ids_BT),
        documents_BP=torch.from_numpy(documents_BP),
        sequence_ids_B=torch.tensor(indices, dtype=torch.int64),
    )


def evaluation_batches(
    sequences: Sequences, micro_batch_size: int, data_rank: int, data_parallel_size: int, limit: int | None = None
) -> Iterator[Batch]:
    """The sequences of an unshuffled set, each exactly once over all ranks.

    Every rank gets the same number of batches, as sharded weights are gathered together; what is left for the last
    round is dealt out evenly, so its batches may be smaller, and on some ranks empty (B = 0): add up sums and counts,
    not means.

    Args:
        sequences: an unshuffled set.
        micro_batch_size: largest B.
        data_rank: this rank.
        data_parallel_size: ranks.
        limit: take only so many sequences, over all ranks, from the beginning.
    """
    count = sequences.sequences_per_epoch if limit is None else min(limit, sequences.sequences_per_epoch)
    stride = micro_batch_size * data_parallel_size
    for first in range(0, count, stride):
        shares = np.array_split(np.arange(first, min(first + stride, count)), data_parallel_size)
        yield read_batch(sequences, shares[data_rank].tolist())
