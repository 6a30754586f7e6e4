"""DeepSpeed's engine behind three verbs: train a step, save, load."""

import contextlib
import io
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import logger as deepspeed_logger
from torch import Tensor, nn

from calm_megatron.config.deepspeed_json import deepspeed_json
from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import RunConfig
from calm_megatron.data.loader import Batch
from calm_megatron.model.sharding import Sharding
from calm_megatron.parallel.grid import Grid
from calm_megatron.parallel.mpu import ModelParallelUnit
from calm_megatron.parallel.replicas import check_replicas
from calm_megatron.train.optimizer import build_optimizer
from calm_megatron.train.schedule import learning_rate
from calm_megatron.train.task import Task

_STATE = "engine"


class Engine:
    """Trains the module of a task; ZeRO, precision and accumulation are DeepSpeed's."""

    def __init__(self, task: Task, config: RunConfig, grid: Grid) -> None:
        deepspeed_logger.setLevel(logging.WARNING)
        self.task, self.config, self.grid = task, config, grid
        module = task.build()
        self.sharding: Sharding | None = getattr(module, "sharding", None)
        for name, weight in module.named_parameters():
            # DeepSpeed counts a weight's gradient on every tensor rank if it is cut, else on the first alone.
            weight.tensor_model_parallel = self.sharding is not None and self.sharding.is_cut(name)  # type: ignore[attr-defined]
        per_step = config.train.micro_batch_size * grid.data_parallel_size
        deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints the memory in use, whatever its log level
            self.engine, *_ = deepspeed.initialize(
                model=module,
                optimizer=build_optimizer(module, config.optimizer),
                config=deepspeed_json(config, micro_batches=config.train.global_batch_size // per_step),
                dist_init_required=False,
                mpu=ModelParallelUnit(),
            )

    @property
    def module(self) -> nn.Module:
        """The task's module; under ZeRO-3 its weights are there only while it runs."""
        module: nn.Module = self.engine.module
        return module

    def train_step(self, micro_batches: Sequence[Batch], step: int) -> dict[str, float]:
        """One optimizer step on this rank's micro-batches; returns the global means of the task's terms and more.

        Raises:
            UserError: when the loss or the gradient norm is not finite, on all ranks alike.
        """
        self.engine.train()
        rate = learning_rate(step, self.config.optimizer, self.config.train.train_iters)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        self._expect(len(micro_batches))
        sums: dict[str, Tensor] = {}
        for number, batch in enumerate(micro_batches, start=1):
            self.engine.set_gradient_accumulation_boundary(number == len(micro_batches))
            terms = self.task.terms(self.engine, batch, step)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value.detach().double()
            if number == len(micro_batches):
                means = self._global_means(sums, len(micro_batches))
                _demand_finite("loss", means["loss"], step)
            self.engine.backward(terms["loss"])
            if number < len(micro_batches):
                self.engine.step()
        norm = self._clipped_norm()
        self.engine.step()
        if norm is None:
            norm = float(self.engine.get_global_grad_norm())
        _demand_finite("gradient norm", norm, step)
        return {**means, "learning_rate": rate, "grad_norm": norm}

    def save(self, directory: Path) -> None:
        """Write this rank's part of weights and optimizer state; called by all ranks."""
        self.engine.save_checkpoint(str(directory), tag=_STATE, save_latest=False)

    def load(self, directory: Path) -> None:
        """Read what `save` wrote at the same layout; called by all ranks."""
        path, _ = self.engine.load_checkpoint(str(directory), tag=_STATE)
        if path is None:
            raise UserError("the engine state could not be read", str(directory / _STATE))

    def whole_weights(self) -> dict[str, Tensor]:
        """All weights, whole, on CPU, at the main rank; empty elsewhere. Called by all ranks."""
        weights: dict[str, Tensor] = {}
        for name, weight in self.module.named_parameters():
            with deepspeed.zero.GatheredParameters([weight], enabled=self.config.parallel.zero_stage == 3):
                whole = self._whole(name, weight.detach())
                if self.grid.is_main:
                    weights[name] = whole.cpu().clone()
        return weights

    def check_replicas(self) -> None:
        """Compare the ranks' copies of weights bit by bit; called by all ranks.

        Raises:
            UserError: some differ.
        """
        # Under ZeRO-3 a rank keeps its share of a weight only, of which the tensor ranks of its data rank have copies.
        weights = {name: getattr(weight, "ds_tensor", weight) for name, weight in self.module.named_parameters()}
        copied = {
            name: weight for name, weight in weights.items() if not (self.sharding and self.sharding.is_cut(name))
        }
        check_replicas(copied, self.grid.tensor_group, "tensor ranks")
        if self.config.parallel.zero_stage < 3:
            check_replicas(weights, self.grid.data_group, "data ranks")

    def _whole(self, name: str, part: Tensor) -> Tensor:
        if self.sharding is None or not self.sharding.is_cut(name):
            return part
        parts = [torch.empty_like(part) for _ in range(self.sharding.size)]
        dist.all_gather(parts, part.contiguous(), group=self.grid.tensor_group)
        return self.sharding.whole(name, parts)

    def _expect(self, micro_batches: int) -> None:
        """Follow the batch-size ramp-up."""
        if micro_batches != self.engine.gradient_accumulation_steps():
            per_step = self.config.train.micro_batch_size * self.grid.data_parallel_size
            self.engine.set_train_batch_size(micro_batches * per_step)

    def _clipped_norm(self) -> float | None:
        """Norm before clipping, where DeepSpeed does not clip (ZeRO 0); the ranks' gradients are averaged by now."""
        if self.config.parallel.zero_stage > 0:
            return None
        limit = self.config.optimizer.clip_grad or math.inf
        weights = list(self.module.parameters())
        squares = torch.stack([self._squares(weights, cut=False), self._squares(weights, cut=True)])
        if self.grid.tensor_size > 1:
            dist.all_reduce(squares[1:], group=self.grid.tensor_group)
        norm = squares.sum().sqrt()
        nn.utils.clip_grads_with_norm_(weights, limit, norm)
        return float(norm)

    def _squares(self, weights: Sequence[nn.Parameter], cut: bool) -> Tensor:
        """Sum of the squares of the gradients of the weights that the tensor ranks cut, or of those they copy."""
        gradients = [
            weight.grad
            for weight in weights
            if weight.grad is not None and weight.tensor_model_parallel is cut  # type: ignore[attr-defined]
        ]
        return nn.utils.get_total_norm(gradients).square() if gradients else torch.zeros((), device=self.grid.device)

    def _global_means(self, sums: dict[str, Tensor], micro_batches: int) -> dict[str, float]:
        names = sorted(sums)
        vector = torch.stack([sums[name] for name in names]) / (micro_batches * self.grid.data_parallel_size)
        dist.all_reduce(vector, group=self.grid.data_group)
        return dict(zip(names, vector.tolist(), strict=True))


def _demand_finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise UserError(
            f"the {what} became {value} in step {step + 1}",
            "training stopped before the next checkpoint; the last one saved is intact",
            "go on from it with a lower optimizer.lr or clip_grad, or a longer optimizer.lr_warmup_iters",
        )
