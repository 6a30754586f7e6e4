"""The published sizes and a CALM small enough to run, as whole runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from calm_megatron.config.schema import RunConfig
from calm_megatron.plan.report import read_for_plan

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

SMALL = (
    "model.vocab_size=77", "model.hidden_size=24", "model.ffn_hidden_size=40",
    "model.num_attention_heads=4", "train.train_iters=1", "data.seq_length=14",
)  # fmt: skip
SMALL_CALM = (
    *SMALL, "model.type=calm", "model.autoencoder=unused", "model.patch_size=2", "model.latent_size=6",
    "model.head.num_layers=2", "model.head.num_samples=4",
)  # fmt: skip
HEADS = {
    "energy": ("model.head.noise_size=5", "model.head.num_target_samples=9"),
    "diffusion": ("model.head.type=diffusion",),
    "flow": ("model.head.type=flow",),
}
SMALL_AR = (*SMALL, "model.type=ar")


@pytest.fixture
def preset() -> Callable[..., RunConfig]:
    """Reads a file of `examples/models` for a node of GPUs, with settings."""
    return lambda name, *settings: read_for_plan(
        [EXAMPLES / "models" / f"{name}.yaml", EXAMPLES / "machines" / "gpu_node.yaml"], settings
    )


@pytest.fixture
def small_calm() -> Callable[..., RunConfig]:
    """A small CALM with settings."""

    def read(*settings: str, layers: int = 3, head: str = "energy") -> RunConfig:
        return read_for_plan([], [*SMALL_CALM, *HEADS[head], f"model.num_layers={layers}", *settings])

    return read


@pytest.fixture
def small_ar() -> Callable[..., RunConfig]:
    """A small baseline with settings."""
    return lambda *settings, layers=3: read_for_plan([], [*SMALL_AR, f"model.num_layers={layers}", *settings])
