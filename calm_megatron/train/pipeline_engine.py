"""The engine with a pipeline: DeepSpeed's 1F1B schedule over stages that we cut by their cost."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.pipe import PipelineModule
from deepspeed.runtime import bf16_optimizer
from deepspeed.runtime.pipe.schedule import OptimizerStep
from deepspeed.runtime.pipe.topology import PipelineParallelGrid, PipeModelDataParallelTopology
from deepspeed.runtime.utils import (
    get_global_norm_of_tensors,
    is_model_parallel_parameter,
    mask_nan_or_inf_with_val_inplace,
)
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn

from calm_megatron.data.batch import Batch
from calm_megatron.parallel.grid import Grid
from calm_megatron.parallel.pipeline_ranks import PipelineRanks
from calm_megatron.train.engine import Engine, TermSums
from calm_megatron.train.stragglers import OwnTime
from calm_megatron.train.task import Task


class Stage(nn.Module):
    """This rank's part of the model as one layer of DeepSpeed's pipeline.

    Each rank of a pipeline reads the same micro-batches, as data never communicates, and the schedule runs them in
    their order. So one tensor is all that travels, and every stage has ids, documents and keys of the noise at hand.
    """

    def __init__(self, model: nn.Module, task: Task, stages: PipelineRanks, own_time: OwnTime) -> None:
        super().__init__()
        self.model = model
        self._task, self._stages, self._own_time = task, stages, own_time
        self._step = 0
        self._batches: Iterator[Batch] = iter(())

    def begin(self, step: int, micro_batches: Sequence[Batch], sums: TermSums) -> None:
        """Make ready for the micro-batches of a step; their terms are added to `sums` at the last stage."""
        self._step, self._batches, self._sums = step, iter(micro_batches), sums

    def forward(self, received: Tensor) -> Tensor:
        """What goes to the next stage; of the last stage the loss. The first stage receives nothing of use."""
        module = self.model if self._stages.is_first else partial(self.model, received=received)
        with self._own_time.measured():
            result = self._task.forward(module, next(self._batches), self._step)
        if isinstance(result, Tensor):
            return result.contiguous()
        self._sums.add(result)
        return result.loss


class PipelineEngine(Engine):
    """Trains a stage of the model of a task."""

    def _initialise(self, settings: dict[str, Any]) -> Any:
        grid = self.grid
        self._stage = Stage(self.model, self.task, grid.stages, self.own_time)
        topology = topology_of(grid)
        # One layer a stage: the cut is ours (plan/stages.py), as DeepSpeed balances parameters or numbers of layers.
        module = PipelineModule([self._stage] * grid.stages.size, topology=topology, partition_method="uniform")
        _demand_same_place(module.mpu(), grid)
        bf16_optimizer.get_global_norm_of_tensors = _norm_of_any_number_of_tensors
        engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=self.optimizer,
            config=settings,
            dist_init_required=False,
        )
        if isinstance(engine.optimizer, DeepSpeedZeroOptimizer):
            engine.optimizer.scaled_global_norm = partial(_norm_in_one_sum, engine.optimizer)
        return engine

    def _accumulate_and_update(
        self, micro_batches: Sequence[Batch], step: int, allows: Callable[[float], bool]
    ) -> tuple[dict[str, float], float]:
        sums = TermSums(self.task.term_names, self.grid)
        means: dict[str, float] = {}
        norm: float | None = None

        def update(engine: Any, **arguments: Any) -> None:
            """DeepSpeed's optimizer step, or none if the loss forbids it; the gradients are averaged by now."""
            nonlocal means, norm
            means = sums.means(len(micro_batches))
            self.optimizer.skip = not allows(means["loss"])
            norm = self._clipped_norm()
            instructions[OptimizerStep](engine, **arguments)

        instructions = type(self.engine)._INSTRUCTION_MAP
        self.engine._INSTRUCTION_MAP = {**instructions, OptimizerStep: update}
        self._stage.begin(step, micro_batches, sums)
        # The first stage wants an input and the last one labels; ours read their batches themselves.
        nothing = torch.zeros(1, device=self.grid.device)
        self.engine.train_batch(iter([(nothing, nothing)] * len(micro_batches)))
        return means, float(self.engine.get_global_grad_norm()) if norm is None else norm


def topology_of(grid: Grid) -> PipeModelDataParallelTopology:
    """The places of all ranks, as DeepSpeed's pipeline numbers them."""
    return PipeModelDataParallelTopology(
        num_pp=grid.stages.size, num_mp=grid.tensor_size, num_dp=grid.data_parallel_size
    )


def _norm_in_one_sum(optimizer: Any) -> Tensor:
    """Norm of the gradients of all ranks under ZeRO 1, or DeepSpeed's mark for a norm that is no number.

    DeepSpeed 0.19.8 sums over the ranks once for each group of weights, and leaves out empty groups. A stage that holds
    a single matrix has one group less than the others, and all wait for ever.
    """
    square = torch.zeros((), device=optimizer.device)
    for group in range(len(optimizer.bit16_groups)):
        gradients = (each for each in optimizer.averaged_gradients[group] if not getattr(each, "_zero_padding", False))
        for gradient, weight in zip(gradients, optimizer.params_in_partition[group], strict=False):
            if is_model_parallel_parameter(weight) or optimizer.model_parallel_rank == 0:
                square += torch.linalg.vector_norm(gradient.detach().float()).square()
    dist.all_reduce(square, group=optimizer.dp_process_group)
    dist.all_reduce(square, group=optimizer.model_parallel_group)
    norm = square.sqrt()
    mask_nan_or_inf_with_val_inplace(norm, device=optimizer.device)
    return norm


def _norm_of_any_number_of_tensors(input_tensors: Sequence[Tensor], **how: Any) -> Tensor:
    """DeepSpeed's norm over the ranks of a model, which 0.19.8 cannot take at a rank that has nothing to count.

    Such is a tensor rank behind the first at a stage of the head alone, whose weights are copies.
    """
    norm: Tensor = get_global_norm_of_tensors(input_tensors=input_tensors or [torch.zeros(1)], **how)
    return norm


def _demand_same_place(deepspeed_grid: PipelineParallelGrid, grid: Grid) -> None:
    """DeepSpeed and megatron-core number the ranks each in its own way, and must come to the same."""
    theirs = (
        deepspeed_grid.get_stage_id(),
        deepspeed_grid.get_data_parallel_id(),
        deepspeed_grid.get_slice_parallel_rank(),
    )
    ours = (grid.stages.rank, grid.data_rank, grid.tensor_rank)
    if theirs != ours:
        raise RuntimeError(
            f"rank {grid.rank} is {theirs} to DeepSpeed and {ours} to megatron-core (stage, data, tensor)"
        )
