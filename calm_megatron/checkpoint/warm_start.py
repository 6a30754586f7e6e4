"""Weights that a new run starts with: those of a checkpoint of ours, of any layout, or of an official one."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from calm_megatron.checkpoint.load import find_checkpoint, saved_config, state_of
from calm_megatron.checkpoint.manifest import Manifest
from calm_megatron.checkpoint.official_files import is_official
from calm_megatron.checkpoint.official_state import demand_sound, official_autoencoder, open_official
from calm_megatron.checkpoint.pieces import Place
from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import ModelConfig
from calm_megatron.model.autoencoder import FrozenAutoencoder

_NOT_THE_FUNCTION = {
    "autoencoder", "pad_token_id", "init_method_std", "dropout", "kl_clamp", "kl_weight", "round_embedding_to_bf16",
    "num_samples", "num_target_samples", "num_sampling_steps", "beta",
}  # fmt: skip
"""Settings of a model that change its training or its sampling, and not what its weights mean."""
_SOURCES = ("tokenizer", "autoencoder")
"""Fingerprints of what gives the weights their meaning; another data set is no obstacle."""


class Weights(Protocol):
    """Something that has weights for any layout."""

    def read(self, kind: str, place: Place) -> Tensor:
        """The flat values of a place, in fp32; `kind` is "weight"."""


def open_weights(
    path: str | Path, model: ModelConfig, fingerprints: Mapping[str, str], accept_changed_sources: bool = False
) -> Weights:
    """The weights of a run, checkpoint or official checkpoint, for a model that is to go on from them.

    Args:
        path: where they are.
        model: the new run's.
        fingerprints: of the new run's tokenizer and autoencoder.
        accept_changed_sources: go on from weights that were trained with others.

    Raises:
        UserError: they are damaged, of another model, or trained with another tokenizer or autoencoder.
    """
    weights: Weights
    if is_official(Path(path)):
        official = open_official(path)
        _demand_same_model(official.config, model, path)
        demand_sound(official)
        found = {}
        if official.autoencoder is not None:
            found["autoencoder"] = FrozenAutoencoder(official_autoencoder(official)).fingerprint()
        weights = official.state
    else:
        checkpoint = find_checkpoint(path)
        manifest = Manifest.verified(checkpoint)
        found = dict(manifest.fingerprints)
        _demand_same_model(saved_config(checkpoint).model, model, path)
        weights = state_of(checkpoint, manifest)
    changed = [name for name in _SOURCES if found.get(name, fingerprints.get(name)) != fingerprints.get(name)]
    if changed and not accept_changed_sources:
        raise UserError(
            f"these weights were trained with another {' and another '.join(changed)}, and mean something else here",
            f"checkpoint.pretrained_checkpoint = {path}",
            "bring the same back, or set checkpoint.accept_changed_sources=true",
        )
    return weights


def _demand_same_model(theirs: ModelConfig, ours: ModelConfig, path: str | Path) -> None:
    before, now = _function(dataclasses.asdict(theirs)), _function(dataclasses.asdict(ours))
    problems = [
        f"model.{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]
    if problems:
        raise UserError(
            "the weights are of another model:\n  " + "\n  ".join(problems),
            f"checkpoint.pretrained_checkpoint = {path}",
            "take these settings over, or start without it",
        )


def _function(model: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings that decide what the weights mean."""
    found: dict[str, Any] = {}
    for name, value in model.items():
        if isinstance(value, dict):
            found |= _function(value, f"{prefix}{name}.")
        elif name not in _NOT_THE_FUNCTION:
            found[f"{prefix}{name}"] = value
    if not prefix and "num_query_groups" in model:
        found["num_query_groups"] = model["num_query_groups"] or model["num_attention_heads"]
    return found
