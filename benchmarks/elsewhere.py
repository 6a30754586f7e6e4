"""What a function costs in a process of its own: CPU time with that of its children, wall time, memory."""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """Of one call."""

    cpu_seconds: float
    whole_cpu_seconds: float
    """With the start of the process, imports and preparation."""
    wall_seconds: float
    grown_mib: float
    """Peak resident memory of the process less what it had before; children not counted."""
    child_mib: float
    """Peak resident memory of the largest child process."""


def cost_elsewhere(prepare: Callable[[], Callable[[], object]]) -> Cost:
    """What the function costs that `prepare` gives; imports and other preparations do not count.

    `prepare` is a function of a module, perhaps with arguments bound by `functools.partial`.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_cost, args=(sender, prepare))
    process.start()
    sender.close()  # so that a process that dies is an end of file here, not an endless wait
    try:
        cost: Cost = receiver.recv()
    finally:
        process.join()
    return cost


def _send_cost(sender: Connection, prepare: Callable[[], Callable[[], object]]) -> None:
    function = prepare()
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's word for: forget the peak of resident memory
    before, cpu, start = _peak_mib(), _cpu_seconds(), time.perf_counter()
    kept = function()
    wall = time.perf_counter() - start
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    sender.send(Cost(_cpu_seconds() - cpu, _cpu_seconds(), wall, _peak_mib() - before, children))
    del kept


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _peak_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmHWM: memory is measured on Linux only")
