"""What the loop needs to know of a model: how to build it, its training terms for a batch, and its validation."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import AutoencoderConfig, RunConfig
from calm_megatron.data.batch import Batch
from calm_megatron.data.data_splits import DataSplits
from calm_megatron.evaluate.validation import EvaluationPlan
from calm_megatron.parallel.grid import Grid
from calm_megatron.parallel.random_streams import RandomStreams
from calm_megatron.plan.stages import stage_layers


class Terms(Protocol):
    """Scalars of a micro-batch, means over its patches."""

    @property
    def loss(self) -> Tensor:
        """The one that carries the gradient."""

    def named(self) -> dict[str, Tensor]:
        """All of them, as they are logged; "loss" among them."""


class Task(Protocol):
    """One kind of model to train; see autoencoder_task.py and calm_task.py."""

    data: DataSplits
    term_names: tuple[str, ...]
    """Of the training terms, so that pipeline stages that never see them know them too."""
    fingerprints: Mapping[str, str]
    """Of what the run is built on, beside its data."""

    def build(self) -> nn.Module:
        """The module or this pipeline stage's part, with initial weights, in the run's precision, on its device."""

    def forward(self, module: Callable[..., Any], batch: Batch, step: int) -> Terms | Tensor:
        """Training terms of a micro-batch; of a pipeline stage before the last, what it sends to the next."""

    def validate(self, module: nn.Module, split: str, eval_iters: int) -> dict[str, object]:
        """Scores on a split, the same in every layout: on `eval_iters` global batches of it, or on all of it for 0."""


def dtype_of(config: RunConfig) -> torch.dtype:
    """Type of weights and activations."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.train.precision]


def own_layers(config: RunConfig, grid: Grid, autoencoder: AutoencoderConfig | None = None) -> tuple[str, ...] | None:
    """The layers of this pipeline stage, cut by their cost; none without a pipeline."""
    if grid.stages.size == 1:
        return None
    return stage_layers(config, grid.stages.size, autoencoder)[grid.stages.rank]


def evaluation_plan(
    config: RunConfig, data: DataSplits, split: str, eval_iters: int, grid: Grid, streams: RandomStreams
) -> EvaluationPlan:
    """What a validation runs over; `split` is train, valid or test, `eval_iters` = 0 takes all of it.

    Raises:
        UserError: the data has no such split.
    """
    dataset = getattr(data, split)
    if dataset is None:
        raise UserError(f"the data has no split '{split}'", "data", "give it a share in data.split, or its own path")
    sequences = eval_iters * config.train.global_batch_size or None
    return EvaluationPlan(dataset, config.train.micro_batch_size, sequences, grid, streams)
