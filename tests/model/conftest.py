"""Small models with random weights wide enough that everything in them matters."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from calm_megatron.config.schema import AutoencoderConfig, CalmConfig, EnergyHeadConfig
from calm_megatron.model.autoencoder import Autoencoder, FrozenAutoencoder
from calm_megatron.model.calm import Calm
from calm_megatron.model.initialise import initialise
from calm_megatron.parallel.grid import Grid

AUTOENCODER = AutoencoderConfig(vocab_size=23, patch_size=4, latent_size=6, hidden_size=16, ffn_hidden_size=24)
CALM = CalmConfig(
    autoencoder="in memory",
    vocab_size=23,
    patch_size=4,
    latent_size=6,
    pad_token_id=22,
    num_layers=3,
    hidden_size=32,
    ffn_hidden_size=48,
    num_attention_heads=4,
    num_query_groups=2,
    head=EnergyHeadConfig(num_layers=2, noise_size=8, num_samples=4, num_target_samples=10),
)
PAD = 22


@pytest.fixture
def autoencoder() -> Autoencoder:
    """An autoencoder with K = 4 and 23 tokens."""
    module = Autoencoder(AUTOENCODER)
    initialise(module, seed=3, std=0.3)
    return module


@pytest.fixture
def build(grid: Grid, autoencoder: Autoencoder) -> Callable[..., Calm]:
    """Builds a CALM; settings of the model are changed by name, `recompute` and `dtype` are passed on."""

    def build(recompute: bool = False, dtype: torch.dtype = torch.float32, **changes: Any) -> Calm:
        frozen = FrozenAutoencoder(autoencoder).to(grid.device, dtype)
        model = Calm(dataclasses.replace(CALM, **changes), frozen, recompute=recompute, dtype=dtype)
        initialise(model, seed=5, std=0.2)
        return model

    return build


@pytest.fixture
def ids_BT() -> Tensor:
    """Two sequences of eight patches without pad tokens."""
    return torch.randint(PAD, (2, 32), generator=torch.Generator().manual_seed(0))
