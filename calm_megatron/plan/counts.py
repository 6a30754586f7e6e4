"""Parameters of a model by part, from the config alone.

The closed formulae agree with the built models to the last parameter (tests/plan/test_counts.py).
"""

from calm_megatron.config.schema import ArConfig, AutoencoderConfig, BackboneConfig, CalmConfig


def autoencoder_parameters(config: AutoencoderConfig) -> dict[str, int]:
    """Parameters of the autoencoder; input and output embedding are one matrix."""
    H, Z, K = config.hidden_size, config.latent_size, config.patch_size
    layer = 3 * H * config.ffn_hidden_size + H
    return {
        "embedding": config.vocab_size * H,
        "encoder": config.num_encoder_layers * layer + _linear(K * H, H) + H + _linear(H, 2 * Z),
        "decoder": _linear(Z, H) + config.num_decoder_layers * layer + _linear(H, K * H) + H,
    }


def calm_parameters(config: CalmConfig) -> dict[str, int]:
    """Parameters of CALM, without the frozen autoencoder."""
    H, K = config.hidden_size, config.patch_size
    from_tokens = config.input == "tokens"
    return {
        "embedding": config.vocab_size * H if from_tokens else 0,
        "compression": _linear(K * H if from_tokens else config.latent_size, 2 * H) + _linear(2 * H, H) + 2 * H,
        "backbone": config.num_layers * _transformer_layer(config) + H,
        "head": _energy_head(config),
    }


def ar_parameters(config: ArConfig) -> dict[str, int]:
    """Parameters of the token-level baseline."""
    H = config.hidden_size
    return {
        "embedding": config.vocab_size * H,
        "backbone": config.num_layers * _transformer_layer(config) + H,
        "output": config.vocab_size * H,
    }


def _transformer_layer(config: BackboneConfig) -> int:
    H, heads = config.hidden_size, config.num_attention_heads
    groups = config.num_query_groups or heads
    attention = 2 * H * H + 2 * H * (H // heads * groups)
    return attention + 3 * H * config.ffn_hidden_size + 2 * H


def _energy_head(config: CalmConfig) -> int:
    H, norm = config.hidden_size, 2 * config.hidden_size
    block = norm + _linear(2 * H, H) + _linear(H, H) + _linear(H, 2 * H) + _linear(H, H)
    inputs = _linear(config.head.noise_size, H) + _linear(H, H) + 2 * norm
    return inputs + config.head.num_layers * block + norm + _linear(H, H) + _linear(H, config.latent_size)


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs
