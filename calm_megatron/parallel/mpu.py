"""The process groups in the words that DeepSpeed asks for."""

from typing import cast

from megatron.core import parallel_state
from torch.distributed import ProcessGroup


class ModelParallelUnit:
    """megatron-core's tensor and data groups under DeepSpeed's names."""

    def get_model_parallel_rank(self) -> int:
        """Place among the tensor ranks."""
        return int(parallel_state.get_tensor_model_parallel_rank())

    def get_model_parallel_world_size(self) -> int:
        """Number of tensor ranks."""
        return int(parallel_state.get_tensor_model_parallel_world_size())

    def get_model_parallel_group(self) -> ProcessGroup:
        """The tensor ranks of this rank."""
        return cast(ProcessGroup, parallel_state.get_tensor_model_parallel_group())

    def get_data_parallel_rank(self) -> int:
        """Place among the data ranks."""
        return int(parallel_state.get_data_parallel_rank())

    def get_data_parallel_world_size(self) -> int:
        """Number of data ranks."""
        return int(parallel_state.get_data_parallel_world_size())

    def get_data_parallel_group(self) -> ProcessGroup:
        """The data ranks of this rank."""
        return cast(ProcessGroup, parallel_state.get_data_parallel_group())

    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_group = get_model_parallel_group
