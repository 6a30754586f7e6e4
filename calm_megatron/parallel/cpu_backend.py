"""What the engines need to run on a machine without a GPU, in one place.

Import this before DeepSpeed or megatron-core. On a machine with a GPU it changes nothing.
"""

import os
from collections.abc import Sequence

import torch

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


class CpuMemoryBuffer:
    """megatron-core's buffer for gathered sequences, which there always lies on the CUDA device."""

    def get_tensor(self, shape: Sequence[int], dtype: torch.dtype, name: str, _: object = None) -> torch.Tensor:
        """A new tensor; the allocator of the CPU needs no reuse."""
        return torch.empty(tuple(shape), dtype=dtype)


def use_cpu_memory_buffer() -> None:
    """Give megatron-core a buffer on the CPU; after its process groups were made."""
    from megatron.core import parallel_state

    if ON_CPU:
        parallel_state._GLOBAL_MEMORY_BUFFER = CpuMemoryBuffer()


def device(local_rank: int) -> torch.device:
    """The device of this rank."""
    return torch.device("cpu") if ON_CPU else torch.device("cuda", local_rank)


def backend() -> str:
    """torch.distributed's backend for this machine."""
    return "gloo" if ON_CPU else "nccl"
