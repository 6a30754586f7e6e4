"""Measures ours beside a baseline: rounds interleaved in one process, so that a busy machine slows both."""

import ctypes
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """One of several figures behind a row."""

    name: str
    ours: float
    baseline: float

    @property
    def ratio(self) -> float:
        """baseline / ours."""
        return self.baseline / self.ours


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one benchmark found."""

    ratio: float
    """baseline / ours, the median over the rounds: above 1, ours needs less; of a count beside its formula, 1."""
    ours: float
    """Median over the rounds, or sum of the parts, in `unit`."""
    baseline: float
    """Likewise."""
    unit: str
    spread: tuple[float, float]
    """First and third quartile of the rounds' ratios; of counts, which do not vary, the parts' smallest and largest."""
    parts: tuple[Part, ...] = ()


def row(ours: Sequence[float], baseline: Sequence[float], unit: str) -> Row:
    """Sum up the rounds; round i of ours and of the baseline were measured one after the other."""
    ratios = [b / a for a, b in zip(ours, baseline, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Row(
        ratio=statistics.median(ratios),
        ours=statistics.median(ours),
        baseline=statistics.median(baseline),
        unit=unit,
        spread=(low, high),
    )


def counted(parts: Sequence[Part], unit: str) -> Row:
    """Sum up counts (ours) beside their formulas (the baseline)."""
    ours, formula = sum(part.ours for part in parts), sum(part.baseline for part in parts)
    ratios = [part.ratio for part in parts]
    spread = (min(ratios), max(ratios))
    return Row(ratio=formula / ours, ours=ours, baseline=formula, unit=unit, spread=spread, parts=tuple(parts))


def compare_times(ours: Callable[[], object], baseline: Callable[[], object], rounds: int = 15) -> Row:
    """Time two functions in turns, in milliseconds, after one call of each that warms up."""
    ours()
    baseline()
    pairs = [(_milliseconds(ours), _milliseconds(baseline)) for _ in range(rounds)]
    return row([pair[0] for pair in pairs], [pair[1] for pair in pairs], "ms")


def compare_peaks(ours: Callable[[], object], baseline: Callable[[], object], rounds: int = 3) -> Row:
    """Compare the memory in MiB that two module-level functions take at their peak, each call in its own process.

    Each function is called twice: what the first call adds for good (code, threads) is not counted.
    """
    pairs = [(peak_elsewhere(ours), peak_elsewhere(baseline)) for _ in range(rounds)]
    return row([pair[0] for pair in pairs], [pair[1] for pair in pairs], "MiB")


def demand_equal(what: str, ours: Tensor, baseline: Tensor, tolerance: float = 1e-4) -> None:
    """Stop unless ours differs from the baseline by at most `tolerance` of its largest value.

    Raises:
        AssertionError: there is nothing to compare where two functions compute different things.
    """
    error = ((ours - baseline).abs().max() / baseline.abs().max()).item()
    if not error <= tolerance:
        raise AssertionError(f"{what}: ours and the baseline differ by {error:.2g} of the largest value")


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _milliseconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - start)


def peak_elsewhere(function: Callable[[], object]) -> float:
    """Memory in MiB that the second call of a function takes at its peak, in a process of its own."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_peak, args=(sender, function))
    process.start()
    sender.close()  # so that a process that dies is an end of file here, not an endless wait
    try:
        peak: float = receiver.recv()
    finally:
        process.join()
    return peak


def _send_peak(sender: Connection, function: Callable[[], object]) -> None:
    function()
    ctypes.CDLL(None).malloc_trim(0)
    before = _status_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's word for: forget the peak of resident memory
    function()
    sender.send(_status_mib("VmHWM") - before)


def _status_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}: memory is measured on Linux only")


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
