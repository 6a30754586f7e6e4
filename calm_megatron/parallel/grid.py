"""Who this process is among the ranks, and how the process groups start and end."""

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from calm_megatron.config.errors import UserError
from calm_megatron.parallel import cpu_backend
from calm_megatron.parallel.lost_ranks import RankLost
from calm_megatron.parallel.pipeline_ranks import PipelineRanks


@dataclass(frozen=True)
class Grid:
    """Place of this rank. Data-parallel ranks see different sequences; all other ranks of a group share them."""

    rank: int
    world_size: int
    data_rank: int
    data_parallel_size: int
    device: torch.device
    data_group: dist.ProcessGroup
    tensor_rank: int = 0
    tensor_size: int = 1
    tensor_group: dist.ProcessGroup | None = None
    stages: PipelineRanks = field(default_factory=PipelineRanks)
    """This rank's pipeline: those that hold the other layers of the same model."""

    @property
    def is_main(self) -> bool:
        """Whether this rank speaks for the run: prints, writes logs, publishes checkpoints."""
        return self.rank == 0


def data_parallel_size(tensor_size: int, pipeline_size: int) -> int:
    """Data ranks in the world that the launcher announces (1 without a launcher), before any group exists.

    Raises:
        UserError: the ranks of one model do not divide the world.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    ranks = tensor_size * pipeline_size
    if world % ranks:
        works = " or ".join(str(size) for size in range(1, world + 1) if world % size == 0)
        raise UserError(
            f"parallel.tensor_model_parallel_size * pipeline_model_parallel_size = {tensor_size} * {pipeline_size} "
            f"does not divide the {world} ranks that were started",
            "the launcher's WORLD_SIZE",
            f"start a multiple of {ranks} ranks, or bring the product to {works}",
        )
    return world // ranks


def start(timeout_minutes: float = 10.0, tensor_size: int = 1, pipeline_size: int = 1) -> Grid:
    """Join the process groups of this run; without a launcher (torchrun, srun) a world of one rank.

    Args:
        timeout_minutes: how long to wait for the other ranks.
        tensor_size: ranks that share the model's matrices: neighbours, as they talk the most.
        pipeline_size: stages, each with its part of the layers: the farthest apart, as they talk the least.

    Raises:
        RankLost: when the other ranks do not answer.
    """
    cpu_backend.switch_off_shared_memory_op()
    cpu_backend.place_megatron_buffers_on_cpu()
    device = cpu_backend.device(int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        _join(timedelta(minutes=timeout_minutes))
    if parallel_state.model_parallel_is_initialized() and (tensor_size, pipeline_size) != (
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_pipeline_model_parallel_world_size(),
    ):
        parallel_state.destroy_model_parallel()
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(
            tensor_size,
            pipeline_size,
            create_gloo_process_groups=False,
            distributed_timeout_minutes=math.ceil(timeout_minutes),
        )
    return Grid(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        data_rank=parallel_state.get_data_parallel_rank(),
        data_parallel_size=parallel_state.get_data_parallel_world_size(),
        device=device,
        data_group=parallel_state.get_data_parallel_group(),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        tensor_size=parallel_state.get_tensor_model_parallel_world_size(),
        tensor_group=parallel_state.get_tensor_model_parallel_group(),
        stages=PipelineRanks.of_this_process(device),
    )


def stop() -> None:
    """Leave the process groups."""
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def one_rank() -> Iterator[Grid]:
    """A grid for a tool that works alone; leaves a grid that is already there as it is."""
    already = dist.is_initialized()
    grid = start()
    try:
        yield grid
    finally:
        if not already:
            stop()


def _join(timeout: timedelta) -> None:
    if "RANK" not in os.environ:
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
        # A store in memory: no port, so that many tools and tests can run side by side.
        store = dist.HashStore()  # type: ignore[attr-defined]  # torch's stubs leave it out
        dist.init_process_group(cpu_backend.backend(), store=store, rank=0, world_size=1, timeout=timeout)
        return
    try:
        dist.init_process_group(cpu_backend.backend(), timeout=timeout)
    except (dist.DistError, ValueError) as error:
        rank, world = os.environ["RANK"], os.environ.get("WORLD_SIZE")
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise RankLost(
            f"rank {rank} of {world} could not join the others: {error}",
            f"rendezvous {address}",
            "check that every rank was started with the same address and world size",
        ) from error
