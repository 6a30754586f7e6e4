"""On what a run runs: the facts that stand in its log and in its report."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGES = ("torch", "deepspeed", "megatron-core")


def describe_environment() -> dict[str, str]:
    """Machine, software and number of ranks, each under the name a report shows."""
    facts = {
        "host": platform.node(),
        "system": platform.platform(),
        "processor": f"{_processor()}, {_usable_cores()} usable cores, {torch.get_num_threads()} threads",
        "GPU": _gpus(),
        "ranks": str(torch.distributed.get_world_size()) if _is_distributed() else "1",
        "Python": sys.version.split()[0],
    }
    return facts | {package: _version(package) for package in _PACKAGES}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "none"
    return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
