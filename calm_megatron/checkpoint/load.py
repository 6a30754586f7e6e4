"""Load trained models for use: the frozen autoencoder of a CALM run, or a model to evaluate and generate with."""

import re
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from calm_megatron.checkpoint.store import checkpoints_of, newest_checkpoint
from calm_megatron.config.errors import UserError
from calm_megatron.config.files import load_run
from calm_megatron.config.schema import ArConfig, AutoencoderConfig, CalmConfig, RunConfig
from calm_megatron.model.ar_baseline import ArBaseline
from calm_megatron.model.autoencoder import Autoencoder, FrozenAutoencoder
from calm_megatron.model.calm import Calm

Kind = TypeVar("Kind", AutoencoderConfig, CalmConfig, ArConfig)


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint that a path means: itself, or the newest of a run folder."""
    path = Path(path)
    if (path / "weights.safetensors").is_file():
        return path
    newest = newest_checkpoint(checkpoints_of(path))
    if newest is None:
        raise UserError(
            "there is no checkpoint", str(path), "name a run folder (with checkpoints/) or one of its checkpoints"
        )
    return newest


def saved_config(path: str | Path) -> RunConfig:
    """The config that a run or checkpoint was saved with."""
    return load_run([find_checkpoint(path) / "config.yaml"])


def step_of(checkpoint: Path) -> int:
    """The training step of a checkpoint folder."""
    match = re.fullmatch(r"step_(\d+)", checkpoint.name)
    if match is None:
        raise UserError("this is no checkpoint folder of a run", str(checkpoint), "its name should be step_<number>")
    return int(match.group(1))


def load_autoencoder(path: str | Path) -> Autoencoder:
    """The autoencoder of a run or checkpoint, in fp32 and evaluation mode."""
    checkpoint = find_checkpoint(path)
    module = Autoencoder(_model_config(checkpoint, AutoencoderConfig, "an autoencoder"))
    _load_weights(module, checkpoint)
    return module.eval()


def load_calm(path: str | Path, autoencoder: str | Path | None = None) -> Calm:
    """CALM with its autoencoder, in fp32 and evaluation mode; needs process groups (parallel.grid).

    Args:
        path: run folder or checkpoint.
        autoencoder: where the autoencoder is now; none means where it was when the run was trained.
    """
    checkpoint = find_checkpoint(path)
    config = _model_config(checkpoint, CalmConfig, "a CALM")
    frozen = FrozenAutoencoder(load_autoencoder(autoencoder or config.autoencoder))
    model = Calm(config, frozen)
    _load_weights(model, checkpoint)
    return model.eval()


def load_ar_baseline(path: str | Path) -> ArBaseline:
    """The token-level baseline, in fp32 and evaluation mode; needs process groups (parallel.grid)."""
    checkpoint = find_checkpoint(path)
    model = ArBaseline(_model_config(checkpoint, ArConfig, "a baseline"))
    _load_weights(model, checkpoint)
    return model.eval()


def _model_config(checkpoint: Path, kind: type[Kind], name: str) -> Kind:
    """The model's part of the saved config, if it is of the kind that is asked for."""
    model = saved_config(checkpoint).model
    if not isinstance(model, kind):
        raise UserError(f"this holds a model of type '{model.type}', not {name}", str(checkpoint))
    return model


def _load_weights(module: nn.Module, checkpoint: Path) -> None:
    path = checkpoint / "weights.safetensors"
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the weights cannot be read: {error}", str(path), "take another checkpoint") from None
    own = dict(module.named_parameters())
    wrong = [
        name
        for name in own.keys() | weights.keys()
        if name not in own or name not in weights or own[name].shape != weights[name].shape
    ]
    if wrong:
        raise UserError(f"these weights do not fit the saved config: {sorted(wrong)}", str(path))
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(weights[name])
