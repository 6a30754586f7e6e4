"""Work shared by the tensor ranks: what is exchanged in the forward and the backward pass, and who sums gradients."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import mappings
from torch import Tensor, nn


@dataclass(frozen=True)
class TensorRanks:
    """Place of this rank among those that share the model's matrices; without tensor parallelism, alone."""

    rank: int = 0
    size: int = 1
    sequence_parallel: bool = False
    """Between the matrices, each rank holds its part of the sequence only."""

    @staticmethod
    def of_this_process(sequence_parallel: bool) -> "TensorRanks":
        """The ranks of megatron-core's tensor group; one rank alone has nobody to share a sequence with."""
        rank = parallel_state.get_tensor_model_parallel_rank()
        size = parallel_state.get_tensor_model_parallel_world_size()
        return TensorRanks(rank, size, sequence_parallel and size > 1)

    def own_rows(self, whole: Tensor, dim: int = 0) -> Tensor:
        """This rank's part of an axis that divides evenly."""
        return whole.chunk(self.size, dim=dim)[self.rank]

    def to_partial_work(self, hidden_PBH: Tensor) -> Tensor:
        """The whole sequence on every rank, for work of which each does a part; their gradients are summed."""
        if self.size == 1:
            return hidden_PBH
        gathered: Tensor
        if self.sequence_parallel:
            gathered = mappings.gather_from_sequence_parallel_region(hidden_PBH, tensor_parallel_output_grad=True)
        else:
            gathered = _CopyToRanks.apply(hidden_PBH)  # type: ignore[no-untyped-call]
        return gathered

    def gather_samples(self, samples_NRZ: Tensor) -> Tensor:
        """All ranks' samples, for work that every rank does in full: each takes its part of the gradient back."""
        if self.size == 1:
            return samples_NRZ
        gathered: Tensor = mappings.gather_from_sequence_parallel_region(
            samples_NRZ.contiguous(), tensor_parallel_output_grad=False
        )
        return gathered

    def gather_columns(self, part: Tensor) -> Tensor:
        """All columns of what a column-parallel layer gives, on every rank."""
        if self.size == 1:
            return part
        whole: Tensor = mappings.gather_from_tensor_model_parallel_region(part)
        return whole

    def sum_gradients(self, weight: nn.Parameter) -> None:
        """Sum this weight's gradient over the ranks in every backward pass: each used its copy for a part of the work.

        Neither DeepSpeed nor megatron-core's layers do that on their own. The hook runs before the gradient is
        accumulated, so that ZeRO sees the sum only.
        """
        if self.size > 1:
            weight.register_hook(_summed_over_ranks)


class _CopyToRanks(torch.autograd.Function):
    """Identity whose backward sums over the tensor ranks.

    megatron-core's `copy_to_tensor_model_parallel_region` sums a contiguous copy of the gradient, and returns the
    gradient itself: unsummed, when it is not contiguous (0.16.1, `mappings._reduce`).
    """

    @staticmethod
    def forward(ctx, tensor):  # type: ignore[no-untyped-def]
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return _summed_over_ranks(gradient)


def _summed_over_ranks(gradient: Tensor) -> Tensor:
    total = gradient.contiguous().clone()
    dist.all_reduce(total, group=parallel_state.get_tensor_model_parallel_group())
    return total
