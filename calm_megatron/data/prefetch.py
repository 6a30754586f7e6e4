"""Batches ahead of the training: read by worker processes or by a thread, with the time that training waited.

The place in the data is one integer, the samples consumed. What is read ahead is no state: it is read again.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch
from torch.utils.data import DataLoader, Dataset

from calm_megatron.config.checks import nearest_multiples
from calm_megatron.config.errors import UserError
from calm_megatron.data.batch import Batch, read_batch
from calm_megatron.data.sampler import BatchSchedule
from calm_megatron.data.sequences import Sequences

Rows = Batch | UserError
"""Sequences in the order that was asked for, or why they cannot be read: errors do not travel well by themselves."""


class _Reading(Dataset[Rows]):
    """A data set in a worker process, asked for several sequences at once."""

    def __init__(self, sequences: Sequences) -> None:
        self._sequences = sequences

    def __getitem__(self, indices: Sequence[int]) -> Rows:
        try:
            return read_batch(self._sequences, indices)
        except UserError as error:
            return error


class TrainingBatches:
    """Training steps without end, each the list of this rank's micro-batches.

    Each step's sequences are divided among the worker processes by their streams, so that a process stays with its
    streams; without processes, a thread reads. Leaving the `with` block, or `close`, ends both.

    Args:
        sequences: a shuffled set.
        schedule: batch sizes and their division.
        consumed_samples: place in the data at which to begin.
        data_rank: this rank among `schedule.data_parallel_size`.
        num_workers: processes that read; 0 reads in a thread of this process.
        prefetch_steps: steps that are read ahead.
        pin_memory: put batches where a GPU fetches them without waiting.

    Raises:
        UserError: the set's streams cannot be divided among the ranks.
    """

    def __init__(
        self,
        sequences: Sequences,
        schedule: BatchSchedule,
        consumed_samples: int,
        data_rank: int,
        *,
        num_workers: int = 0,
        prefetch_steps: int = 1,
        pin_memory: bool = False,
    ) -> None:
        ranks = schedule.data_parallel_size
        if sequences.streams is not None and sequences.streams % ranks:
            raise UserError(
                f"{sequences.streams} streams of shards cannot be divided among {ranks} data-parallel ranks",
                "data.shard_streams",
                f"nearest that work: {nearest_multiples(sequences.streams, ranks)}, for a run that has not begun",
            )
        self.wait_seconds = 0.0
        """How long the last step waited for its data."""
        self._sequences, self._schedule, self._rank = sequences, schedule, data_rank
        self._workers, self._ahead, self._pin = num_workers, prefetch_steps, pin_memory
        self._steps = self._steps_from(consumed_samples)
        self._read = self._reader(consumed_samples)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="data")
        self._waiting: deque[Future[list[Batch]]] = deque()
        self._fill()

    def __iter__(self) -> Iterator[list[Batch]]:
        """Itself."""
        return self

    def __next__(self) -> list[Batch]:
        """The next step.

        Raises:
            UserError: the data are damaged, or cannot be fetched.
        """
        self._fill()
        started = time.perf_counter()
        step = self._waiting.popleft().result()
        self.wait_seconds = time.perf_counter() - started
        return step

    def _fill(self) -> None:
        while len(self._waiting) <= self._ahead:
            self._waiting.append(self._thread.submit(self._read))

    def close(self) -> None:
        """End the thread and the processes."""
        self._thread.shutdown(cancel_futures=True)
        self._waiting.clear()
        self._read = self._closed

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _closed(self) -> list[Batch]:
        raise RuntimeError("the batches are closed")

    def _steps_from(self, consumed: int) -> Iterator[list[list[int]]]:
        """Sample indices of this rank's micro-batches, step after step."""
        while True:
            yield self._schedule.micro_batches(consumed, self._rank)
            consumed += self._schedule.batch_size_at(consumed)

    def _reader(self, consumed: int) -> Callable[[], list[Batch]]:
        """What reads the next step, called by the thread alone."""
        if not self._workers:
            return lambda: [self._pinned(read_batch(self._sequences, indices)) for indices in next(self._steps)]
        # A sampler of its own, running as far ahead as the workers do.
        requests = (part for step in self._steps_from(consumed) for part in self._divided(step))
        loader = DataLoader(
            _Reading(self._sequences),
            sampler=_Endless(requests),
            batch_size=None,
            num_workers=self._workers,
            prefetch_factor=self._ahead + 1,
            multiprocessing_context="fork",
        )
        answers: Iterator[Rows] = iter(loader)
        return lambda: self._assembled(next(self._steps), answers)

    def _worker_of(self, index: int) -> int:
        streams = self._sequences.streams
        stream = index if streams is None else index % streams
        return stream // self._schedule.data_parallel_size % self._workers

    def _divided(self, step: list[list[int]]) -> list[list[int]]:
        """The step's indices for each worker; `DataLoader` asks its workers in turns."""
        parts: list[list[int]] = [[] for _ in range(self._workers)]
        for index in (index for indices in step for index in indices):
            parts[self._worker_of(index)].append(index)
        return parts

    def _assembled(self, step: list[list[int]], answers: Iterator[Rows]) -> list[Batch]:
        """The step's micro-batches from what the workers read of it."""
        rows = list[Batch]()
        for _ in range(self._workers):
            answer = next(answers)
            if isinstance(answer, UserError):
                raise answer
            rows.append(answer)
        place = {index: n for n, index in enumerate(i for part in rows for i in part.sequence_ids_B.tolist())}
        whole = [torch.cat(tensors) for tensors in zip(*(part.tensors() for part in rows), strict=True)]
        batches = []
        for indices in step:
            order = torch.tensor([place[index] for index in indices])
            batches.append(self._pinned(Batch(*(tensor[order] for tensor in whole))))
        return batches

    def _pinned(self, batch: Batch) -> Batch:
        return Batch(*(tensor.pin_memory() for tensor in batch.tensors())) if self._pin else batch


class _Endless(torch.utils.data.Sampler[list[int]]):
    """Requests for a `DataLoader`."""

    def __init__(self, requests: Iterator[list[int]]) -> None:
        self._requests = requests

    def __iter__(self) -> Iterator[list[int]]:
        return self._requests
