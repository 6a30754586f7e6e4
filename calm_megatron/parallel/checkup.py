"""Before the first step: do all ranks run the same, can they reckon, and do they reach each other?

What would spoil the run is refused (different versions, wrong sums); what would only slow it down or end it later is
told (a slow rank or link, little memory or disk, clocks apart).
"""

import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from calm_megatron.config.errors import UserError
from calm_megatron.config.machine import this_node
from calm_megatron.parallel.grid import Grid

PACKAGES = ("torch", "deepspeed", "megatron-core", "numpy")
_SIZE = 256
"""Of the matrices that are multiplied: small whole numbers, so that every result is exact in fp32."""
_ROUNDS = 8
_NUMBERS = 2**20
"""That are sent from rank to rank."""
_SLOW = 2.0
"""Times the median, from which a rank is called slow."""
_LEAST_DISK_GB, _LEAST_MEMORY_GB, _CLOCK_SECONDS = 1.0, 0.5, 5.0

Work = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Found:
    """What one rank says of itself."""

    rank: int
    node: str
    versions: Mapping[str, str]
    clock: float
    """Unix seconds, taken by all at the same moment."""
    memory_gb: float
    """Free in the host."""
    gpu_gb: float | None
    """Free on the GPU."""
    disk_gb: float
    """Free where the run folder is."""
    work_seconds: float
    link_seconds: float
    """To send to the next rank and receive from the one before."""
    right: bool
    """Whether its own products and sums came out right."""
    told_right: bool
    """Whether what it gave to the sum was right."""


def installed() -> dict[str, str]:
    """Versions of what computes."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def multiply(matrix: Tensor) -> Tensor:
    """The work that is timed."""
    for _ in range(_ROUNDS):
        product = matrix @ matrix
    return product


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum that is checked."""
    dist.all_reduce(values)
    return values


def examine(
    grid: Grid,
    directory: Path,
    versions: Mapping[str, str] | None = None,
    work: Work = multiply,
    add_up: Work = sum_over_ranks,
) -> list[Found]:
    """Look at all ranks; called by all, and returns the same on all.

    Args:
        grid: place of this rank.
        directory: of the run.
        versions: of this rank's packages; none looks them up.
        work, add_up: what is timed and checked.
    """
    right, seconds = _work(grid.device, work)
    own = _numbers(grid.rank, grid.device)
    total = add_up(own.clone())
    expected = sum((_numbers(rank, grid.device) for rank in range(grid.world_size)), torch.zeros_like(own))
    given = [torch.empty_like(own) for _ in range(grid.world_size)]
    dist.all_gather(given, own)
    right = right and torch.equal(total, expected)
    link = _link(grid)
    dist.barrier()
    gpu = torch.cuda.mem_get_info(grid.device)[0] / 1e9 if grid.device.type == "cuda" else None
    mine = Found(
        rank=grid.rank,
        node=this_node(),
        versions=dict(versions or installed()),
        clock=time.time(),
        memory_gb=_free_memory_gb(),
        gpu_gb=gpu,
        disk_gb=shutil.disk_usage(_existing(directory)).free / 1e9,
        work_seconds=seconds,
        link_seconds=link,
        right=right,
        told_right=torch.equal(given[grid.rank], _numbers(grid.rank, grid.device)),
    )
    everyone: list[Found] = [mine] * grid.world_size
    dist.all_gather_object(everyone, mine)
    return everyone


def refuse(everyone: Sequence[Found]) -> None:
    """Raise a `UserError` for what would spoil the run."""
    problems = []
    for package in everyone[0].versions:
        by_version: dict[str, list[Found]] = {}
        for found in everyone:
            by_version.setdefault(found.versions.get(package, "none"), []).append(found)
        if len(by_version) > 1:
            odd = sorted(by_version.items(), key=lambda item: -len(item[1]))
            problems.append(f"{package} differs: " + ", ".join(f"{number} on {_names(ranks)}" for number, ranks in odd))
    if wrong := [found for found in everyone if not (found.right and found.told_right)]:
        problems.append(f"products or sums come out wrong on {_names(wrong)}")
    if problems:
        raise UserError(
            "\n".join(problems), "the check before the start", "mend or leave out these nodes (sbatch --exclude)"
        )


def remarks(everyone: Sequence[Found]) -> list[str]:
    """What might slow the run down, or end it later."""
    told = []
    for name, measure in (("computes", "work_seconds"), ("is reached", "link_seconds")):
        seconds = [getattr(found, measure) for found in everyone]
        middle = statistics.median_low(seconds)
        for found, value in zip(everyone, seconds, strict=True):
            if value > _SLOW * middle:
                told.append(f"{_names([found])} {name} {value / middle:.1f} times as slowly as the median")
    for found in everyone:
        if found.disk_gb < _LEAST_DISK_GB:
            told.append(f"{_names([found])}: {found.disk_gb:.2f} GB are free for the run folder")
        if found.memory_gb < _LEAST_MEMORY_GB:
            told.append(f"{_names([found])}: {found.memory_gb:.2f} GB of memory are free")
    clocks = [found.clock for found in everyone]
    if max(clocks) - min(clocks) > _CLOCK_SECONDS:
        told.append(f"the clocks are {max(clocks) - min(clocks):.0f} s apart: times in logs do not compare")
    return told


def as_table(everyone: Sequence[Found]) -> str:
    """A line for each rank."""
    lines = ["rank  node              work ms  link MB/s  memory GB  GPU GB  disk GB  right"]
    for found in everyone:
        rate = 4 * _NUMBERS / 1e6 / found.link_seconds if found.link_seconds else 0.0
        gpu = f"{found.gpu_gb:.1f}" if found.gpu_gb is not None else "-"
        lines.append(
            f"{found.rank:4}  {found.node:16}  {1e3 * found.work_seconds:7.2f}  {rate:9.0f}  {found.memory_gb:9.1f}  "
            f"{gpu:>6}  {found.disk_gb:7.0f}  {'yes' if found.right and found.told_right else 'NO'}"
        )
    return "\n".join(lines)


def _names(ranks: Sequence[Found]) -> str:
    return ", ".join(f"rank {found.rank} ({found.node})" for found in ranks)


def _work(device: torch.device, work: Work) -> tuple[bool, float]:
    """Whether products of whole numbers are exact, and the quickest of three times."""
    rows = torch.arange(_SIZE, device=device)
    matrix = ((rows.unsqueeze(1) * 3 + rows) % 5).float()
    expected = (matrix.cpu().long() @ matrix.cpu().long()).float()
    right, times = True, []
    for _ in range(3):
        start = time.perf_counter()
        product = work(matrix).cpu()  # which waits for a GPU
        times.append(time.perf_counter() - start)
        right = right and torch.equal(product, expected)
    return right, min(times)


def _numbers(rank: int, device: torch.device) -> Tensor:
    """What a rank gives to the sum: whole numbers, of which those of many ranks add up exactly."""
    return ((torch.arange(4096, device=device) * (rank + 7)) % 251).float()


def _link(grid: Grid) -> float:
    """Seconds to send to the next rank while the one before sends here; the quickest of three."""
    if grid.world_size == 1:
        return 0.0
    after, before = (grid.rank + 1) % grid.world_size, (grid.rank - 1) % grid.world_size
    sent = torch.zeros(_NUMBERS, device=grid.device)
    received = torch.empty_like(sent)
    times = []
    for _ in range(3):
        dist.barrier()
        start = time.perf_counter()
        moves = [dist.P2POp(dist.isend, sent, after), dist.P2POp(dist.irecv, received, before)]
        for move in dist.batch_isend_irecv(moves):
            move.wait()
        received[-1].item()
        times.append(time.perf_counter() - start)
    return min(times)


def _free_memory_gb() -> float:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9


def _existing(directory: Path) -> Path:
    return next(path for path in [directory, *directory.resolve().parents] if path.exists())
