"""Peaks of known GPUs, as their makers state them: without sparsity, in one direction of a link.

A device that is not here is unknown, and so is what would follow from it; nothing is guessed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One GPU in a node of eight."""

    name: str
    pattern: str
    """Of the name that the driver gives it."""
    flops: Mapping[str, float]
    """Dense matrix products a second by precision; fp32 without tensor cores, as torch computes by default."""
    memory_gb: float
    """In 10^9 bytes."""
    link_gb: float
    """To the other GPUs of its node, in GB a second and direction."""
    source: str


_NVIDIA = "https://www.nvidia.com/en-us/data-center"
DEVICES: tuple[Device, ...] = (
    Device(
        "v100", r"Tesla V100-SXM2-32GB", {"fp16": 125e12, "fp32": 15.7e12}, 32, 150,
        "https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf",
    ),
    Device(
        "a100", r"NVIDIA A100-SXM4-80GB", {"bf16": 312e12, "fp16": 312e12, "fp32": 19.5e12}, 80, 300,
        f"{_NVIDIA}/a100/",
    ),
    Device(
        "h100", r"NVIDIA H100 80GB HBM3", {"bf16": 989.4e12, "fp16": 989.4e12, "fp32": 66.9e12}, 80, 450,
        f"{_NVIDIA}/h100/",
    ),
    Device(
        "h200", r"NVIDIA H200", {"bf16": 989.4e12, "fp16": 989.4e12, "fp32": 66.9e12}, 141, 450,
        f"{_NVIDIA}/h200/",
    ),
    Device(
        "b200", r"NVIDIA B200", {"bf16": 2250e12, "fp16": 2250e12, "fp32": 80e12}, 180, 900,
        f"{_NVIDIA}/hgx/",
    ),
)  # fmt: skip
"""The SXM boards; PCIe cards of the same name are slower and are not here."""


def device(name: str) -> Device | None:
    """By the short name of the table."""
    return next((known for known in DEVICES if known.name == name), None)


def device_of(driver_name: str) -> Device | None:
    """By the name that the driver gives, whole."""
    return next((known for known in DEVICES if re.fullmatch(known.pattern, driver_name)), None)
