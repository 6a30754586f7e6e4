"""The weights of an official checkpoint under our names, for any layout, and what is wrong with them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from calm_megatron.checkpoint.meter import Meter, silent
from calm_megatron.checkpoint.official_config import autoencoder_config, backbone_config, kind_of
from calm_megatron.checkpoint.official_files import CONFIG, OfficialFiles
from calm_megatron.checkpoint.pieces import Place
from calm_megatron.checkpoint.weights import put
from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import AutoencoderConfig, BackboneConfig, CalmConfig, ModelConfig
from calm_megatron.model.autoencoder import Autoencoder
from calm_megatron.model.official import (
    AUTOENCODER_PREFIX,
    TABLE,
    OfficialWeight,
    Shapes,
    copies,
    official_shapes,
    official_weights,
)
from calm_megatron.model.sharding import Sharding


class OfficialState:
    """The weights of one model in an official checkpoint.

    Args:
        files: the checkpoint.
        config: of the model.
        prefix: of its official names there.
    """

    def __init__(self, files: OfficialFiles, config: ModelConfig, prefix: str = "") -> None:
        self.files, self.config, self.prefix = files, config, prefix
        self.weights: dict[str, OfficialWeight] = {weight.name: weight for weight in official_weights(config)}

    def names(self) -> list[str]:
        """Ours, of all weights."""
        return sorted(self.weights)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a whole weight of ours."""
        return self.weights[name].shape()

    def whole(self, kind: str, name: str) -> Tensor:
        """A whole weight of ours in fp32; `kind` is "weight", as there are no moments."""
        assert kind == "weight", "an official checkpoint has weights alone"
        weight = self.weights[name]
        return weight.of([self.files.read(self.prefix + theirs) for theirs in weight.shapes], self.config).float()

    def read(self, kind: str, place: Place) -> Tensor:
        """The flat values of a place of any layout, in fp32."""
        whole = self.whole(kind, place.name)
        if place.parts > 1:
            assert isinstance(self.config, BackboneConfig), "an autoencoder is never cut"
            whole = Sharding(self.config, place.part, place.parts).part(place.name, whole)
        return whole.flatten()[place.start : place.stop]


@dataclass(frozen=True)
class OfficialModel:
    """A checkpoint that was opened and understood."""

    files: OfficialFiles
    kind: str
    """A value of `official_config.ARCHITECTURES`."""
    state: OfficialState
    """Of the model."""
    autoencoder: OfficialState | None
    """Of a CALM: of the autoencoder within it."""
    notes: tuple[str, ...] = ()
    """What had to be assumed."""

    @property
    def config(self) -> ModelConfig:
        """Our config of the model."""
        return self.state.config

    @property
    def shapes(self) -> Shapes:
        """Of all official tensors that must be there."""
        inner = {} if self.autoencoder is None else official_shapes(self.autoencoder.config)
        return official_shapes(self.config) | {AUTOENCODER_PREFIX + name: shape for name, shape in inner.items()}


def open_official(path: str | Path, autoencoder: str | Path | None = None, named: str = "") -> OfficialModel:
    """Open an official checkpoint.

    Args:
        path: folder, file of weights, or index.
        autoencoder: of a CALM: official folder with the config of the autoencoder within it; none means what its own
            config tells, or the weights' shapes.
        named: of a CALM: what its config is to call the autoencoder's place.

    Raises:
        UserError: it cannot be read, or is of no known model. Its weights are not looked at; see `demand_sound`.
    """
    files = OfficialFiles(path)
    where = str(files.folder / CONFIG)
    shapes = {name: stored.shape for name, stored in files.tensors.items()}
    kind = kind_of(files.config, shapes, where)
    if kind == "autoencoder":
        return OfficialModel(files, kind, OfficialState(files, autoencoder_config(files.config, where)), None)
    model = backbone_config(files.config, kind, named, where)
    if not isinstance(model, CalmConfig):
        return OfficialModel(files, kind, OfficialState(files, model), None)
    inner, notes = _inner_autoencoder(files, model, shapes, None if autoencoder is None else Path(autoencoder))
    return OfficialModel(
        files, kind, OfficialState(files, model), OfficialState(files, inner, AUTOENCODER_PREFIX), notes
    )


def demand_sound(model: OfficialModel, meter: Meter = silent) -> None:
    """Read all tensors once.

    Raises:
        UserError: naming every one that is missing, unexpected, of another shape, of no kind of floating-point numbers,
            not finite, or different from its copy.
    """
    problems = list(_problems(model, meter))
    if problems:
        raise UserError(
            "these weights are not those of the model in config.json:\n  " + "\n  ".join(problems),
            str(model.files.path),
            "take a whole checkpoint, with the config that it was saved with",
        )


def _problems(model: OfficialModel, meter: Meter) -> Iterator[str]:
    stored, expected = model.files.tensors, model.shapes
    known = expected.keys() | {copy for name in expected for copy in copies(name)}
    yield from (f"missing: {name}" for name in sorted(expected.keys() - stored.keys()))
    yield from (f"unexpected: {name}" for name in sorted(stored.keys() - known))
    total = sum(torch.Size(shape).numel() for shape in expected.values())
    done = 0
    for name, shape in expected.items():
        done += torch.Size(shape).numel()
        meter("check", done, total)
        if name not in stored:
            continue
        found = stored[name]
        if found.shape != shape:
            yield f"{name}: shape {found.shape} instead of {shape}"
        elif found.dtype is None:
            yield f"{name}: it holds no fp32, bf16 or fp16 numbers"
        else:
            yield from _wrong_values(model.files, name)


def _wrong_values(files: OfficialFiles, name: str) -> Iterator[str]:
    tensor = files.read(name)
    if bad := tensor.numel() - int(tensor.isfinite().sum()):
        yield f"{name}: {bad} of {tensor.numel()} elements are not finite"
    for copy in copies(name):
        if copy in files.tensors and not torch.equal(files.read(copy), tensor):
            yield f"{copy} differs from {name}, of which it should be a copy: it was trained untied"


def _inner_autoencoder(
    files: OfficialFiles, model: CalmConfig, shapes: Mapping[str, tuple[int, ...]], given: Path | None
) -> tuple[AutoencoderConfig, tuple[str, ...]]:
    """Config of the autoencoder within a CALM, and notes on what was assumed."""
    if given is not None:
        return autoencoder_config(OfficialFiles(given).config, str(given / CONFIG)), ()
    if isinstance(own := files.config.get("ae_config"), dict):
        return autoencoder_config(own, f"{files.folder / CONFIG}: ae_config"), ()
    named = files.config.get("ae_path")
    if isinstance(named, str) and (place := files.folder / named / CONFIG).is_file():
        return autoencoder_config(json.loads(place.read_text(encoding="utf-8")), str(place)), ()
    note = (
        f"ae_path = {named!r} leads nowhere: the autoencoder's sizes were taken from its weights, the rest is assumed "
        "to be the official defaults, such as rms_norm_eps 1e-6 (--autoencoder names its folder)"
    )
    return _from_shapes(files, model, shapes), (note,)


def _from_shapes(files: OfficialFiles, model: CalmConfig, shapes: Mapping[str, tuple[int, ...]]) -> AutoencoderConfig:
    p = AUTOENCODER_PREFIX
    table, gate = shapes.get(p + TABLE), shapes.get(f"{p}encoder.encoder_layers.0.mlp.gate_proj.weight")
    if table is None or gate is None or len(table) != 2:
        raise UserError(
            f"the autoencoder is not in the checkpoint: {p}* is missing",
            str(files.path),
            "take a whole CALM checkpoint",
        )
    encoder, decoder = (len({name for name in shapes if _layer_norm(name, side)}) for side in ("encoder", "decoder"))
    return AutoencoderConfig(
        vocab_size=table[0],
        patch_size=model.patch_size,
        latent_size=model.latent_size,
        hidden_size=table[1],
        ffn_hidden_size=gate[0],
        num_encoder_layers=encoder,
        num_decoder_layers=decoder,
        round_embedding_to_bf16=True,
    )


def _layer_norm(name: str, side: str) -> bool:
    return name.startswith(f"{AUTOENCODER_PREFIX}{side}.{side}_layers.") and name.endswith(".layernorm.weight")


def official_autoencoder(model: OfficialModel) -> Autoencoder:
    """The autoencoder of an official checkpoint, or the one within a CALM, in fp32 and evaluation mode.

    Raises:
        UserError: it is of a baseline.
    """
    state = model.autoencoder or model.state
    if not isinstance(state.config, AutoencoderConfig):
        raise UserError("there is no autoencoder in this checkpoint", str(model.files.path))
    module = Autoencoder(state.config)
    put({name: state.whole("weight", name) for name in state.names()}, module)
    return module.eval()
