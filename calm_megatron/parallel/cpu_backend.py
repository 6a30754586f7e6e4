"""What the engines need to run on a machine without a GPU, in one place.

Import this before DeepSpeed or megatron-core. On a machine with a GPU it changes nothing.
"""

import os

import torch

from calm_megatron.config.errors import UserError

ON_CPU = not torch.cuda.is_available()

if ON_CPU:
    # DeepSpeed asks for the accelerator when it is imported; without this it probes for others first.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")


def switch_off_shared_memory_op() -> None:
    """Keep DeepSpeed from compiling its shared-memory collective on CPU.

    The compilation takes a minute, a process killed meanwhile leaves a lock on which every later start hangs, and the
    op needs AVX-512 for bf16. gloo serves.
    """
    # Imported here because it takes seconds, which tools without an engine need not wait for.
    import deepspeed.ops

    if ON_CPU:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def place_megatron_buffers_on_cpu() -> None:
    """megatron-core allocates what it gathers on `torch.cuda.current_device()`; let that be the CPU where it is all."""
    if ON_CPU:
        torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment, return-value]


def refuse_fp16() -> None:
    """Raise a `UserError` where there is no arithmetic in fp16; needs no process group."""
    if ON_CPU and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        raise UserError("this CPU cannot calculate in fp16", "train.precision = fp16", "use bf16 or fp32, or a GPU")


def device(local_rank: int) -> torch.device:
    """The device of this rank."""
    return torch.device("cpu") if ON_CPU else torch.device("cuda", local_rank)


def backend() -> str:
    """torch.distributed's backend for this machine."""
    return "gloo" if ON_CPU else "nccl"
