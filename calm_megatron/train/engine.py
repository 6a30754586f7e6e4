"""DeepSpeed's engine: it trains a step, and has a state to save and restore."""

import contextlib
import io
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import logger as deepspeed_logger
from torch import Tensor, nn

from calm_megatron.config.deepspeed_json import deepspeed_json
from calm_megatron.config.schema import RunConfig
from calm_megatron.data.batch import Batch
from calm_megatron.model.sharding import Sharding
from calm_megatron.parallel.grid import Grid
from calm_megatron.parallel.mpu import ModelParallelUnit
from calm_megatron.parallel.replicas import check_replicas
from calm_megatron.train.engine_state import EngineState
from calm_megatron.train.optimizer import build_optimizer
from calm_megatron.train.schedule import learning_rate
from calm_megatron.train.stragglers import OwnTime
from calm_megatron.train.task import Task, Terms


class Engine:
    """Trains the module of a task; ZeRO, precision and accumulation are DeepSpeed's."""

    def __init__(self, task: Task, config: RunConfig, grid: Grid) -> None:
        deepspeed_logger.setLevel(logging.WARNING)
        self.task, self.config, self.grid = task, config, grid
        self.model = task.build()
        """The task's model, or this pipeline stage's part; under ZeRO-3 its weights are there only while it runs."""
        self.sharding: Sharding | None = getattr(self.model, "sharding", None)
        for name, weight in self.model.named_parameters():
            # DeepSpeed counts a weight's gradient on every tensor rank if it is cut, else on the first alone.
            weight.tensor_model_parallel = self.sharding is not None and self.sharding.is_cut(name)  # type: ignore[attr-defined]
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.parameters = self._count_parameters()
        """Weights of the whole model."""
        per_step = config.train.micro_batch_size * grid.data_parallel_size
        self.own_time = OwnTime(grid.device)
        """This rank's forward passes."""
        deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints the memory in use, whatever its log level
            self.engine = self._initialise(deepspeed_json(config, config.train.global_batch_size // per_step))
        self.state = EngineState(self.engine, self.model, self.sharding, config.parallel.zero_stage, grid)
        """Weights, moments and scalars: what checkpoints hold."""

    def train_step(
        self, micro_batches: Sequence[Batch], step: int, allows: Callable[[float], bool] = math.isfinite
    ) -> dict[str, float]:
        """One optimizer step on this rank's micro-batches; returns the global means of the task's terms and more.

        Args:
            micro_batches: of this rank.
            step: number of the step, from 0.
            allows: whether a loss lets the step be taken; asked with the same loss on all ranks.

        Returns:
            With "skipped" among the values where the step was left out: not allowed, or with infinite gradients.
        """
        self.model.train()
        rate = learning_rate(step, self.config.optimizer, self.config.train.train_iters)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        self._expect(len(micro_batches))
        means, norm = self._accumulate_and_update(micro_batches, step, allows)
        skipped = self.optimizer.skip or not self.engine.was_step_applied()
        self.optimizer.skip = False
        values = {**means, "learning_rate": rate, **({"skipped": 1.0} if skipped else {"grad_norm": norm})}
        if self.config.train.precision == "fp16":
            values["loss_scale"] = float(self.engine.optimizer.loss_scale)
        return values

    def _initialise(self, settings: dict[str, Any]) -> Any:
        """DeepSpeed's engine around the model."""
        engine, *_ = deepspeed.initialize(
            model=self.model,
            optimizer=self.optimizer,
            config=settings,
            dist_init_required=False,
            mpu=ModelParallelUnit(),
        )
        return engine

    def _accumulate_and_update(
        self, micro_batches: Sequence[Batch], step: int, allows: Callable[[float], bool]
    ) -> tuple[dict[str, float], float]:
        """Forward and backward passes and the optimizer step; returns the terms and the gradient norm."""
        sums = TermSums(self.task.term_names, self.grid)
        for number, batch in enumerate(micro_batches, start=1):
            self.engine.set_gradient_accumulation_boundary(number == len(micro_batches))
            with self.own_time.measured():
                terms = self.task.forward(self.engine, batch, step)
            assert not isinstance(terms, Tensor), "the whole model gives terms"
            sums.add(terms)
            if number == len(micro_batches):
                means = sums.means(len(micro_batches))
                self.optimizer.skip = not allows(means["loss"])
            self.engine.backward(terms.loss)
            if number < len(micro_batches):
                self.engine.step()
        norm = self._clipped_norm()
        self.engine.step()
        return means, float(self.engine.get_global_grad_norm()) if norm is None else norm

    def check_replicas(self) -> None:
        """Compare the ranks' copies of weights bit by bit; called by all ranks.

        Raises:
            UserError: some differ.
        """
        # Under ZeRO-3 a rank keeps its share of a weight only, of which the tensor ranks of its data rank have copies.
        weights = {name: getattr(weight, "ds_tensor", weight) for name, weight in self.model.named_parameters()}
        copied = {
            name: weight for name, weight in weights.items() if not (self.sharding and self.sharding.is_cut(name))
        }
        check_replicas(copied, self.grid.tensor_group, "tensor ranks")
        if self.config.parallel.zero_stage < 3:
            check_replicas(weights, self.grid.data_group, "data ranks")

    def _expect(self, micro_batches: int) -> None:
        """Follow the batch-size ramp-up."""
        if micro_batches != self.engine.gradient_accumulation_steps():
            per_step = self.config.train.micro_batch_size * self.grid.data_parallel_size
            self.engine.set_train_batch_size(micro_batches * per_step)

    def _count_parameters(self) -> int:
        shapes = self.model.named_parameters()
        whole = (
            self.sharding.whole_shape(name, weight.shape) if self.sharding else weight.shape for name, weight in shapes
        )
        count = torch.tensor(sum(map(math.prod, whole)), dtype=torch.int64, device=self.grid.device)
        return int(self.grid.stages.total(count))

    def _clipped_norm(self) -> float | None:
        """Norm before clipping, where DeepSpeed does not clip (ZeRO 0); the ranks' gradients are averaged by now."""
        if self.config.parallel.zero_stage > 0:
            return None
        limit = self.config.optimizer.clip_grad or math.inf
        weights = list(self.model.parameters())
        squares = torch.stack([self._squares(weights, cut=False), self._squares(weights, cut=True)])
        if self.grid.tensor_size > 1:
            dist.all_reduce(squares[1:], group=self.grid.tensor_group)
        norm = self.grid.stages.total(squares.sum()).sqrt()
        nn.utils.clip_grads_with_norm_(weights, limit, norm)
        self.optimizer.skip |= not math.isfinite(norm)  # the stages of ZeRO look at it themselves
        return float(norm)

    def _squares(self, weights: Sequence[nn.Parameter], cut: bool) -> Tensor:
        """Sum of the squares of the gradients of the weights that the tensor ranks cut, or of those they copy."""
        gradients = [
            weight.grad
            for weight in weights
            if weight.grad is not None and weight.tensor_model_parallel is cut  # type: ignore[attr-defined]
        ]
        return nn.utils.get_total_norm(gradients).square() if gradients else torch.zeros((), device=self.grid.device)


class TermSums:
    """Training terms of a step, summed over the micro-batches of this rank, then averaged over all."""

    def __init__(self, names: Sequence[str], grid: Grid) -> None:
        self.names, self.grid = names, grid
        self._sums = torch.zeros(len(names), dtype=torch.float64, device=grid.device)

    def add(self, terms: Terms) -> None:
        """Count a micro-batch."""
        named = terms.named()
        self._sums += torch.stack([named[name].detach().double() for name in self.names])

    def means(self, micro_batches: int) -> dict[str, float]:
        """Means over all micro-batches of all data ranks; all ranks call; of a pipeline the last stage has added."""
        means = self._sums / (micro_batches * self.grid.data_parallel_size)
        dist.all_reduce(means, group=self.grid.data_group)
        return dict(zip(self.names, self.grid.stages.total(means).tolist(), strict=True))
