"""Tasks on several processes, with results in the order of the tasks and only a few tasks ahead."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar, cast

from calm_megatron.config.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int, initialise: Callable[[], None]
) -> Generator[tuple[Task, Result], None, None]:
    """Each task with its result; an error of a task is raised in its turn.

    Processes are forked, so `function` may hold what cannot be sent. Only two tasks more than there are workers are
    under way, so that tasks which carry much data do not pile up.

    Raises:
        UserError: a process was ended from outside.
    """
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _Start(function, initialise))
    call = cast(Callable[[Task], Result], _call)
    waiting = deque[tuple[Task, Future[Result]]]()
    try:
        for task in tasks:
            waiting.append((task, pool.submit(call, task)))
            if len(waiting) > workers + 1:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was ended from outside",
            "most often by the kernel, for want of memory",
            "run the same command again; it goes on where it was. Fewer --workers need less memory",
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


class _Start:
    """What a new process does first; kept by the fork, not sent."""

    def __init__(self, function: Callable[..., object], initialise: Callable[[], None]) -> None:
        self._function, self._initialise = function, initialise

    def __call__(self) -> None:
        _of_this_process.append(self._function)
        self._initialise()


_of_this_process: list[Callable[..., object]] = []
"""The function of this worker process; empty in every other."""


def _call(task: object) -> object:
    return _of_this_process[-1](task)
