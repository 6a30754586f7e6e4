"""Parameter counts from the config alone: equal to the built models, and near the published sizes."""

from pathlib import Path

import pytest
from torch import nn

from calm_megatron.config.files import load_run
from calm_megatron.config.schema import (
    ArConfig,
    AutoencoderConfig,
    CalmConfig,
    DiffusionHeadConfig,
    EnergyHeadConfig,
    FlowHeadConfig,
    HeadConfig,
)
from calm_megatron.model.ar_baseline import ArBaseline
from calm_megatron.model.autoencoder import Autoencoder, FrozenAutoencoder
from calm_megatron.model.calm import Calm
from calm_megatron.parallel.grid import one_rank
from calm_megatron.plan.counts import ar_parameters, autoencoder_parameters, calm_parameters

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
AUTOENCODER = AutoencoderConfig(
    vocab_size=77, patch_size=2, latent_size=6, hidden_size=10, ffn_hidden_size=14, num_encoder_layers=4
)


def count_parameters(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def test_the_autoencoders_formula_counts_what_is_built() -> None:
    assert sum(autoencoder_parameters(AUTOENCODER).values()) == count_parameters(Autoencoder(AUTOENCODER))


@pytest.mark.parametrize("source", ["tokens", "latents"])
@pytest.mark.parametrize("groups", [None, 2])
@pytest.mark.parametrize(
    "head",
    [EnergyHeadConfig(num_layers=2, noise_size=5), DiffusionHeadConfig(num_layers=2), FlowHeadConfig(num_layers=3)],
    ids=lambda head: head.type,
)
def test_calms_formula_counts_what_is_built(source: str, groups: int | None, head: HeadConfig) -> None:
    config = CalmConfig(
        autoencoder="", vocab_size=77, patch_size=2, latent_size=6, input=source, num_layers=3, hidden_size=24,
        ffn_hidden_size=40, num_attention_heads=4, num_query_groups=groups,
        head=head,
    )  # fmt: skip
    with one_rank():
        built = Calm(config, FrozenAutoencoder(Autoencoder(AUTOENCODER)))
        assert sum(calm_parameters(config).values()) == count_parameters(built)


def test_the_baselines_formula_counts_what_is_built() -> None:
    config = ArConfig(vocab_size=77, num_layers=3, hidden_size=24, ffn_hidden_size=40, num_attention_heads=4)
    with one_rank():
        assert sum(ar_parameters(config).values()) == count_parameters(ArBaseline(config))


@pytest.mark.parametrize(
    ("preset", "published"),
    [("ae_75m", 75e6), ("calm_m", 371e6), ("calm_l", 735e6), ("calm_xl", 1.82e9)],
)
def test_the_presets_have_the_published_sizes(preset: str, published: float) -> None:
    files = [EXAMPLES / "models" / f"{preset}.yaml", EXAMPLES / "machines" / "gpu_node.yaml"]
    model = load_run(files, ["run.directory=run", "data.data_path=data"]).model
    count = autoencoder_parameters if isinstance(model, AutoencoderConfig) else calm_parameters
    assert sum(count(model).values()) == pytest.approx(published, rel=0.015)  # type: ignore[operator, arg-type]
