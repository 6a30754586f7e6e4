"""Stopping on a signal: all ranks agree, finish the step, save and leave."""

import signal
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

from calm_megatron.parallel.grid import Grid

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopSignal:
    """While open, notes SIGTERM, SIGINT and SIGUSR1; a second SIGINT interrupts at once."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._received: int = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        # What came while the run was being put together has waited (command_line.py).
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def requested(self) -> str | None:
        """Name of the signal that some rank received; called by all ranks after each step."""
        flag = torch.tensor(self._received, device=self._grid.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        number = int(flag)
        return signal.Signals(number).name if number else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number
