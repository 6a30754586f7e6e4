"""Kernels of GPU packages, taken where they are installed, with torch's own in their place elsewhere.

Every choice is made here or in a function named here, and said in the log of a run. None of them has yet been run with
this code, for want of a GPU.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from calm_megatron.losses.energy_score import has_kernel

RmsNorm = Callable[[Tensor, Tensor, torch.Size, float], Tensor]


@functools.cache
def apex_rms_norm() -> RmsNorm | None:
    """`fused_rms_norm_affine(input, weight, shape, eps)` of NVIDIA's apex, with statistics in fp32, if it is built."""
    if not torch.cuda.is_available():
        return None
    try:
        # Imported here because it is a package of GPU machines; the apex of PyPI is another one and has no such parts.
        from apex.normalization.fused_layer_norm import fused_rms_norm_affine
    except ImportError:
        return None
    return fused_rms_norm_affine  # type: ignore[no-any-return]


@functools.cache
def apex_fused_adam() -> type[Any] | None:
    """`FusedAdam` of NVIDIA's apex, if it is built."""
    if not torch.cuda.is_available():
        return None
    try:
        # Imported here because both belong to GPU machines; FusedAdam runs the first, and wants it when it is made.
        import amp_C  # noqa: F401
        from apex.optimizers import FusedAdam
    except ImportError:
        return None
    return FusedAdam  # type: ignore[no-any-return]


def has_transformer_engine() -> bool:
    """Whether linear layers are TransformerEngine's."""
    return torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None


def chosen(device: torch.device) -> str:
    """For the log: what is not torch's own."""
    found = {
        "TransformerEngine's linear layers": has_transformer_engine(),
        "apex's RMSNorm": apex_rms_norm() is not None,
        "apex's FusedAdam": apex_fused_adam() is not None,
        "Triton's energy score": has_kernel(device),
    }
    return ", ".join(name for name, there in found.items() if there) or "torch's own"
