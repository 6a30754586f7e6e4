"""The formula of activations against what real runs keep."""

from collections.abc import Sequence

import pytest

from benchmarks.small_run import autoencoder, launch, small
from calm_megatron.losses.energy_score import GPU_CHUNK_NUMBERS
from calm_megatron.plan.activations import TARGET_NUMBERS, activation_memory

TENSOR = "parallel.tensor_model_parallel_size=2"
PIPE = "parallel.pipeline_model_parallel_size=2"
BF16 = ("train.precision=bf16", "parallel.zero_stage=1")
LARGER = (
    "model.hidden_size=192", "model.ffn_hidden_size=512", "model.num_layers=4", "data.seq_length=256",
    "model.latent_size=64", "model.head.num_samples=8",
)  # fmt: skip
LAYOUTS: dict[str, Sequence[str]] = {
    "tiny, data": (),
    "tiny, tensor, bf16": (TENSOR, *BF16),
    "tiny, sequence": (TENSOR, "parallel.sequence_parallel=true"),
    "tiny, pipe": (PIPE,),
    "tiny, recompute": ("train.recompute_granularity=full",),
    "small, data, bf16": (*LARGER, *BF16),
    "small, pipe": (*LARGER, PIPE),
    "small, across documents": (*LARGER, "data.reset_attention_mask=false"),
    "small, sequence, recompute": (
        *LARGER, TENSOR, "parallel.sequence_parallel=true", "train.recompute_granularity=full",
    ),
}  # fmt: skip


def test_activations_are_what_was_kept() -> None:
    found = launch("activations_worker", 2, {name: list(settings) for name, settings in LAYOUTS.items()})
    ratios = {}
    for name, settings in LAYOUTS.items():
        config = small(*settings)
        pipe = config.parallel.pipeline_model_parallel_size
        data_ranks = 2 // (pipe * config.parallel.tensor_model_parallel_size)
        for stage in range(pipe):
            formula = activation_memory(config, data_ranks, stage, autoencoder(config))
            ratios[f"{name}, {stage}"] = (formula.activations + formula.samples) / found[stage * 2 // pipe][name]
    assert ratios == {name: pytest.approx(1, rel=0.1) for name in ratios}


def test_targets_are_no_more_than_a_chunk() -> None:
    assert TARGET_NUMBERS == GPU_CHUNK_NUMBERS
    few, many = (activation_memory(small(f"train.micro_batch_size={size}", f"train.global_batch_size={size}"))
                 for size in (1, 100_000))  # fmt: skip
    assert 0 < few.targets < many.targets == 4 * GPU_CHUNK_NUMBERS


def test_other_heads_are_not_known() -> None:
    with pytest.raises(TypeError, match="energy head"):
        activation_memory(small("model.head.type=flow"))
