"""Parameters of a model by part, from the config alone.

The closed formulae agree with the built models to the last parameter (tests/plan/test_counts.py).
"""

from calm_megatron.config.schema import ArConfig, AutoencoderConfig, BackboneConfig, CalmConfig
from calm_megatron.plan.shapes import decoder, encoder, model_layers


def autoencoder_parameters(config: AutoencoderConfig) -> dict[str, int]:
    """Parameters of the autoencoder; input and output embedding are one matrix."""
    return {
        "embedding": config.vocab_size * config.hidden_size,
        "encoder": encoder(config).parameters,
        "decoder": decoder(config).parameters,
    }


def calm_parameters(config: CalmConfig) -> dict[str, int]:
    """Parameters of CALM, without the frozen autoencoder."""
    embedding = config.vocab_size * config.hidden_size if config.input == "tokens" else 0
    return {
        "embedding": embedding,
        "compression": _sum(config, "patch_embedding") - embedding,
        "backbone": _sum(config, "layers.", "final_norm"),
        "head": _sum(config, "head."),
    }


def ar_parameters(config: ArConfig) -> dict[str, int]:
    """Parameters of the token-level baseline."""
    return {
        "embedding": _sum(config, "embedding"),
        "backbone": _sum(config, "layers.", "final_norm"),
        "output": _sum(config, "output"),
    }


def _sum(model: BackboneConfig, *prefixes: str) -> int:
    return sum(layer.parameters for name, layer in model_layers(model).items() if name.startswith(prefixes))
