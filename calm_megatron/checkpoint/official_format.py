"""Read official checkpoints (github.com/shaochenze/calm): `config.json` with `model.safetensors`."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from calm_megatron.checkpoint.weights import misfits, put
from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import (
    AutoencoderConfig,
    CalmConfig,
    DiffusionHeadConfig,
    EnergyHeadConfig,
    FlowHeadConfig,
    HeadConfig,
)
from calm_megatron.model import names
from calm_megatron.model.autoencoder import Autoencoder, FrozenAutoencoder
from calm_megatron.model.calm import Calm

_SAME_VALUES = ("vocab_size", "patch_size", "latent_size", "hidden_size")


def load_official_autoencoder(directory: Path) -> Autoencoder:
    """An official autoencoder, in fp32. The tied output matrix may be absent, and must be equal where it is present."""
    config, weights = read_official(directory)
    module = Autoencoder(autoencoder_config(config))
    _load_autoencoder(module, weights, directory)
    return module


def load_official_calm(directory: Path, autoencoder: Path) -> Calm:
    """An official CALM with any of its heads, in fp32; needs process groups (parallel.grid)."""
    config, weights = read_official(directory)
    frozen = FrozenAutoencoder(load_official_autoencoder(autoencoder))
    model = Calm(calm_config(config, str(autoencoder)), frozen)
    try:
        ours = names.from_official(weights, (name for name, _ in model.named_parameters()), model.config)
    except KeyError as error:
        raise UserError(f"the checkpoint has no weight {error}", str(directory)) from None
    _copy(model, ours, directory)
    return model


def autoencoder_config(official: dict[str, Any]) -> AutoencoderConfig:
    """Our config of an official autoencoder."""
    return AutoencoderConfig(
        **{name: official[name] for name in (*_SAME_VALUES, "num_encoder_layers", "num_decoder_layers")},
        ffn_hidden_size=official["intermediate_size"],
        layernorm_epsilon=official["rms_norm_eps"],
        init_method_std=official["initializer_range"],
        dropout=official["ae_dropout"],
        kl_clamp=official["kl_clamp"],
        kl_weight=official["kl_weight"],
    )


def calm_config(official: dict[str, Any], autoencoder: str) -> CalmConfig:
    """Our config of an official CALM.

    Raises:
        UserError: the head is of no kind that is known.
    """
    return CalmConfig(
        autoencoder=autoencoder,
        **{name: official[name] for name in _SAME_VALUES},
        pad_token_id=official.get("pad_token_id"),
        num_layers=official["num_hidden_layers"],
        ffn_hidden_size=official["intermediate_size"],
        num_attention_heads=official["num_attention_heads"],
        num_query_groups=official["num_key_value_heads"],
        rotary_base=official["rope_theta"],
        layernorm_epsilon=official["rms_norm_eps"],
        init_method_std=official["initializer_range"],
        head=_head_config(official),
    )


def _head_config(official: dict[str, Any]) -> HeadConfig:
    """The head is told by `architectures`, as the official code does not save its `model_type`."""
    layers, samples = official["num_mlp_layers"], official["num_samples"]
    architecture = (official.get("architectures") or ["EnergyTransformer"])[0]
    if architecture == "EnergyTransformer":
        size, beta = official["noise_size"], official["beta"]
        return EnergyHeadConfig(num_layers=layers, num_samples=samples, noise_size=size, beta=beta)
    if architecture == "DiffusionTransformer":
        return DiffusionHeadConfig(num_layers=layers, num_samples=samples)
    if architecture == "FlowTransformer":
        return FlowHeadConfig(num_layers=layers, num_samples=samples)
    raise UserError(
        f"a model of the architecture '{architecture}' is no official CALM",
        "config.json: architectures",
        "give an EnergyTransformer, a DiffusionTransformer or a FlowTransformer",
    )


def read_official(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and weights of an official checkpoint, as they are in its files."""
    for name in ("config.json", "model.safetensors"):
        if not (directory / name).is_file():
            raise UserError(f"there is no {name}", str(directory), "name a folder with an official checkpoint")
    try:
        return json.loads((directory / "config.json").read_text()), load_file(directory / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"the official checkpoint cannot be read: {error}", str(directory)) from None


def _load_autoencoder(module: Autoencoder, weights: dict[str, Tensor], directory: Path) -> None:
    tied = weights.pop("decoder.lm_head_weight", None)
    embedding = weights.get("encoder.embed_tokens.weight")
    if tied is not None and (embedding is None or not torch.equal(tied, embedding)):
        raise UserError(
            "the autoencoder's output matrix differs from its embedding",
            f"{directory}: decoder.lm_head_weight",
            "it was trained untied, which this model does not have",
        )
    _copy(module, weights, directory)


def _copy(module: torch.nn.Module, weights: dict[str, Tensor], directory: Path) -> None:
    if wrong := misfits(module, weights):
        raise UserError("the weights do not fit:\n  " + "\n  ".join(sorted(wrong.values())), str(directory))
    put(weights, module)
