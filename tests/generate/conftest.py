"""A small untrained model whose samples vary, made once."""

from collections.abc import Iterator

import pytest
import torch

from calm_megatron.config.schema import (
    AutoencoderConfig,
    CalmConfig,
    DiffusionHeadConfig,
    EnergyHeadConfig,
    FlowHeadConfig,
    HeadConfig,
)
from calm_megatron.model.autoencoder import Autoencoder, FrozenAutoencoder
from calm_megatron.model.calm import Calm
from calm_megatron.model.initialise import initialise
from calm_megatron.parallel.grid import one_rank

VOCAB_SIZE, PATCH_SIZE = 12, 4
EOD, PAD = 10, 11
NEVER = 9
"""A token that the small model does not draw: as the end of document it lets texts grow."""


@pytest.fixture(scope="session")
def model() -> Iterator[Calm]:
    """With the energy head."""
    with one_rank():
        yield built(EnergyHeadConfig(num_layers=2, noise_size=16))


@pytest.fixture(
    scope="session",
    params=[
        DiffusionHeadConfig(num_layers=2, num_sampling_steps=4),
        FlowHeadConfig(num_layers=2, num_sampling_steps=3),
    ],
    ids=lambda head: head.type,
)
def stepwise_model(request: pytest.FixtureRequest) -> Iterator[Calm]:
    """With a head that samples in several steps."""
    with one_rank():
        yield built(request.param)


def built(head: HeadConfig) -> Calm:
    """Random weights with a wide standard deviation: each patch has many outcomes, some of them frequent."""
    config = CalmConfig(
        autoencoder="in memory",
        vocab_size=VOCAB_SIZE,
        patch_size=PATCH_SIZE,
        latent_size=8,
        pad_token_id=PAD,
        num_layers=2,
        hidden_size=32,
        ffn_hidden_size=64,
        num_attention_heads=4,
        num_query_groups=2,
        head=head,
    )
    autoencoder = Autoencoder(
        AutoencoderConfig(
            vocab_size=VOCAB_SIZE, patch_size=PATCH_SIZE, latent_size=8, hidden_size=32, ffn_hidden_size=64
        )
    )
    initialise(autoencoder, seed=3, std=0.4)
    with torch.no_grad():
        # A logit of 0 is the largest of twelve only when all others are negative.
        autoencoder.encoder.embed_tokens.weight[NEVER].zero_()
    calm = Calm(config, FrozenAutoencoder(autoencoder))
    initialise(calm, seed=5, std=0.3)
    return calm.eval()
