"""DeepSpeed understands what we tell it, and takes it as we mean it."""

from typing import TYPE_CHECKING, Any

import pytest

from calm_megatron.config.deepspeed_json import deepspeed_json
from calm_megatron.config.files import parse_run
from calm_megatron.parallel.grid import Grid

if TYPE_CHECKING:
    from deepspeed.runtime.config import DeepSpeedConfig


def parsed(zero_stage: int, precision: str = "fp32", clip_grad: float = 0.7) -> "DeepSpeedConfig":
    """DeepSpeed's own reading of the settings of a run."""
    from deepspeed.runtime.config import DeepSpeedConfig  # takes seconds

    tree: dict[str, Any] = {
        "run": {"directory": "r"},
        "model": {"type": "autoencoder", "vocab_size": 20},
        "data": {"data_path": "d", "seq_length": 8},
        "train": {"train_iters": 5, "micro_batch_size": 2, "global_batch_size": 6, "precision": precision},
        "optimizer": {"clip_grad": clip_grad},
        "parallel": {"zero_stage": zero_stage},
    }
    return DeepSpeedConfig(deepspeed_json(parse_run(tree, "a test"), micro_batches=3))


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_batches_and_stage(grid: Grid, zero_stage: int) -> None:
    config = parsed(zero_stage)
    assert config.train_micro_batch_size_per_gpu == 2
    assert config.gradient_accumulation_steps == 3
    assert config.train_batch_size == 6
    assert config.zero_optimization_stage == zero_stage
    assert not config.bfloat16_config.enabled


@pytest.mark.parametrize(("zero_stage", "clipping"), [(0, 0.0), (1, 0.7), (2, 0.7), (3, 0.7)])
def test_gradients_are_clipped_once(grid: Grid, zero_stage: int, clipping: float) -> None:
    """At stage 0 our engine clips, to know the norm; clipping again there would hide a difference."""
    assert parsed(zero_stage).gradient_clipping == clipping
    assert parsed(zero_stage, clip_grad=0.0).gradient_clipping == 0.0


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_bf16_sums_gradients_in_fp32(grid: Grid, zero_stage: int) -> None:
    config = parsed(zero_stage, "bf16")
    assert config.bfloat16_config.enabled
    assert config.bfloat16_config.immediate_grad_update
    assert config.grad_accum_dtype == "fp32"


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_fp16_scales_its_loss_and_sums_gradients_in_fp32(grid: Grid, zero_stage: int) -> None:
    config = parsed(zero_stage, "fp16")
    assert config.float16_config.enabled
    assert config.float16_config.loss_scale == 0  # DeepSpeed's word for dynamic
    assert config.grad_accum_dtype == "fp32"


def test_our_optimizer_is_let_through(grid: Grid) -> None:
    config = parsed(2)
    assert config.zero_allow_untested_optimizer
    assert not config.zero_force_ds_cpu_optimizer
    assert config.optimizer_name is None and config.scheduler_name is None
