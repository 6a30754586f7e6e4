"""The stages of a pipeline: who holds which end, and what one hands to the next outside of training.

In training DeepSpeed's schedule moves the tensors; evaluation goes through the stages one after the other.
"""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_HEADER = 8


@dataclass(frozen=True)
class PipelineRanks:
    """Place of this rank among the stages that together hold one model; without pipeline parallelism, alone."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: dist.ProcessGroup | None = None

    @staticmethod
    def of_this_process(device: torch.device) -> "PipelineRanks":
        """The ranks of megatron-core's pipeline group."""
        return PipelineRanks(
            parallel_state.get_pipeline_model_parallel_rank(),
            parallel_state.get_pipeline_model_parallel_world_size(),
            device,
            parallel_state.get_pipeline_model_parallel_group(),
        )

    @property
    def is_first(self) -> bool:
        """Whether this stage reads tokens."""
        return self.rank == 0

    @property
    def is_last(self) -> bool:
        """Whether this stage computes the loss."""
        return self.rank == self.size - 1

    def receive(self) -> Tensor | None:
        """What the stage before sends, of any shape; None at the first stage."""
        return None if self.is_first else self.receive_from(self.rank - 1)

    def receive_from(self, stage: int) -> Tensor:
        """The next tensor that a stage sends to this one."""
        header = torch.empty(_HEADER, dtype=torch.int64, device=self.device)
        dist.recv(header, group=self.group, group_src=stage)
        kind, axes, *shape = header.tolist()
        tensor = torch.empty(shape[:axes], dtype=_TYPES[kind], device=self.device)
        if tensor.numel():
            dist.recv(tensor, group=self.group, group_src=stage)
        return tensor

    def send(self, tensor: Tensor, stage: int | None = None) -> None:
        """Hand a tensor to the next stage, or another, which receives it."""
        to = self.rank + 1 if stage is None else stage
        facts = [_TYPES.index(tensor.dtype), tensor.dim(), *tensor.shape]
        header = torch.tensor(facts + [0] * (_HEADER - len(facts)), dtype=torch.int64, device=self.device)
        dist.send(header, group=self.group, group_dst=to)
        if tensor.numel():
            dist.send(tensor.contiguous(), group=self.group, group_dst=to)

    def total(self, values: Tensor) -> Tensor:
        """Sum over the stages, in place; a stage that has nothing to add holds zeros."""
        if self.size > 1:
            dist.all_reduce(values, group=self.group)
        return values
