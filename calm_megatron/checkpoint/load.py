"""Load trained models for use: the frozen autoencoder of a CALM run, or a model to evaluate and generate with."""

from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from calm_megatron.checkpoint import manifest
from calm_megatron.checkpoint.manifest import Manifest
from calm_megatron.checkpoint.official_files import is_official
from calm_megatron.checkpoint.official_state import demand_sound, official_autoencoder, open_official
from calm_megatron.checkpoint.saved_state import SavedState
from calm_megatron.checkpoint.store import checkpoints_of, newest_checkpoint
from calm_megatron.checkpoint.weights import misfits, put
from calm_megatron.config.errors import UserError
from calm_megatron.config.files import load_run
from calm_megatron.config.schema import ArConfig, AutoencoderConfig, BackboneConfig, CalmConfig, RunConfig
from calm_megatron.model.ar_baseline import ArBaseline
from calm_megatron.model.autoencoder import Autoencoder, FrozenAutoencoder
from calm_megatron.model.calm import Calm

Kind = TypeVar("Kind", AutoencoderConfig, CalmConfig, ArConfig)


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint that a path means: itself, or the newest of a run folder."""
    path = Path(path)
    if (path / manifest.FILE).is_file() or any(path.glob("rank_*.safetensors")):  # its manifest may be lost
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


def tokenizer_fingerprint(path: str | Path) -> str | None:
    """SHA-256 of the tokenizer whose ids a run or checkpoint was trained on; none if it is not known.

    Of an official folder it is not: its file is written in other words each time that someone saves it.
    """
    return None if is_official(Path(path)) else Manifest.load(find_checkpoint(path)).fingerprints.get("tokenizer")


def load_autoencoder(path: str | Path) -> Autoencoder:
    """The autoencoder of a run, a checkpoint or an official checkpoint, in fp32 and evaluation mode."""
    if is_official(Path(path)):
        official = open_official(path)
        demand_sound(official)
        return official_autoencoder(official)
    checkpoint = find_checkpoint(path)
    module = Autoencoder(_model_config(checkpoint, AutoencoderConfig, "an autoencoder"))
    _load_weights(module, checkpoint)
    return module.eval()


def load_calm(path: str | Path, autoencoder: str | Path | None = None) -> Calm:
    """CALM with its autoencoder, in fp32 and evaluation mode; needs process groups (parallel.grid).

    Args:
        path: run folder or checkpoint.
        autoencoder: where the autoencoder is now; none means where it was when the run was trained.

    Raises:
        UserError: one of the two is missing, damaged or of another kind, or they do not belong together.
    """
    checkpoint = find_checkpoint(path)
    config = _model_config(checkpoint, CalmConfig, "a CALM")
    place = autoencoder or config.autoencoder
    frozen = FrozenAutoencoder(load_autoencoder(place))
    model = Calm(config, frozen)
    demand_trained_on(Manifest.load(checkpoint), frozen, place)
    _load_weights(model, checkpoint)
    return model.eval()


def demand_trained_on(manifest: Manifest, frozen: FrozenAutoencoder, place: str | Path) -> None:
    """Refuse an autoencoder that is not the one that a CALM was trained on; sizes alone may agree.

    Args:
        manifest: of the CALM's checkpoint; one that names no autoencoder refuses none.
        frozen: the autoencoder, with fp32 weights.
        place: where it was found.
    """
    known = manifest.fingerprints.get("autoencoder")
    if known is not None and known != frozen.fingerprint():
        raise UserError(
            "this is not the autoencoder that the model was trained on: its latents mean something else",
            str(place),
            "name the one that was, by --autoencoder",
        )


def demand_tokenizer(path: str | Path, fingerprint: str, place: str | Path) -> None:
    """Refuse a tokenizer that is not the one that a run or checkpoint was trained with, where that is known.

    Args:
        path: run folder or checkpoint.
        fingerprint: SHA-256 of the tokenizer's file.
        place: where it was found.
    """
    if tokenizer_fingerprint(path) not in (None, fingerprint):
        raise UserError(
            "this is not the tokenizer that the model was trained with: its ids mean something else",
            str(place),
            "name the one that was, by --tokenizer, or leave that out: the run folder has it",
        )


def load_ar_baseline(path: str | Path) -> ArBaseline:
    """The token-level baseline, in fp32 and evaluation mode; needs process groups (parallel.grid)."""
    checkpoint = find_checkpoint(path)
    model = ArBaseline(_model_config(checkpoint, ArConfig, "a baseline"))
    _load_weights(model, checkpoint)
    return model.eval()


def load_generator(path: str | Path, autoencoder: str | None, device: torch.device) -> Calm | ArBaseline:
    """A model that writes text, in fp32 and evaluation mode; needs process groups (parallel.grid).

    Args:
        path: run folder or checkpoint of a CALM or a baseline.
        autoencoder: of a CALM: where its autoencoder is now; none means where it was when the run was trained.
        device: to put it on.
    """
    if isinstance(saved_config(path).model, ArConfig):
        if autoencoder is not None:
            raise UserError("a model of type 'ar' has no autoencoder", str(path), "leave --autoencoder out")
        return load_ar_baseline(path).to(device)
    calm = load_calm(path, autoencoder).to(device)
    calm.autoencoder.to(device, torch.float32)
    return calm


def _model_config(checkpoint: Path, kind: type[Kind], name: str) -> Kind:
    """The model's part of the saved config, if it is of the kind that is asked for."""
    model = saved_config(checkpoint).model
    if not isinstance(model, kind):
        raise UserError(f"this holds a model of type '{model.type}', not {name}", str(checkpoint))
    return model


def saved_state(checkpoint: Path) -> SavedState:
    """Weights and moments of a checkpoint, whole ones or those of any layout.

    Raises:
        UserError: a file of it is missing or damaged.
    """
    return state_of(checkpoint, Manifest.verified(checkpoint))


def state_of(checkpoint: Path, verified: Manifest) -> SavedState:
    """Weights and moments of a checkpoint whose files were verified before."""
    model = saved_config(checkpoint).model
    return SavedState(verified.shards(checkpoint), model if isinstance(model, BackboneConfig) else None)


def whole_weights(checkpoint: Path) -> dict[str, Tensor]:
    """All weights of a checkpoint, whole, in fp32; errors as in `saved_state`."""
    state = saved_state(checkpoint)
    return {name: state.whole("weight", name) for name in state.names()}


def _load_weights(module: nn.Module, checkpoint: Path) -> None:
    weights = whole_weights(checkpoint)
    if wrong := misfits(module, weights):
        raise UserError(f"these weights do not fit the saved config: {sorted(wrong)}", str(checkpoint))
    put(weights, module)
