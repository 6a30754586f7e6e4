"""Gives a checkpoint away: an official folder, with the code that loads it, tokenizer and model card.

The weights of a CALM and of the autoencoder that it was trained on go together.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from calm_megatron.checkpoint.load import demand_trained_on, find_checkpoint, load_autoencoder, saved_config, state_of
from calm_megatron.checkpoint.manifest import Manifest
from calm_megatron.checkpoint.meter import Meter, silent
from calm_megatron.checkpoint.official_config import (
    CLASSES,
    MODELLING_FILE,
    Facts,
    SpecialTokens,
    kind_of,
    official_config,
    with_code,
)
from calm_megatron.checkpoint.official_state import demand_sound, open_official
from calm_megatron.checkpoint.publish import demand_free, new_folder
from calm_megatron.checkpoint.saved_state import SavedState
from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import ArConfig, CalmConfig, RunConfig
from calm_megatron.model.autoencoder import FrozenAutoencoder
from calm_megatron.model.calm import check_autoencoder
from calm_megatron.model.official import (
    AUTOENCODER_PREFIX,
    OfficialWeight,
    copies,
    official_shapes,
    official_weights,
)
from calm_megatron.release.importing import ORIGIN, Converted, Origin
from calm_megatron.release.model_card import Card, model_card
from calm_megatron.release.proof import Differences, Ours, compare_outputs, demand_equal, modelling_file
from calm_megatron.release.tensor_files import TensorFilesWriter, TensorPlan, dtypes_by_name
from calm_megatron.release.tokenizer_files import special_tokens, write_tokenizer

GIGABYTE = 10**9


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """How to give a checkpoint away."""

    autoencoder: str | None = None
    """Of a CALM: where its autoencoder is now; none means where it was when the run was trained."""
    dtype: str | None = None
    """Of the weights: float32, bfloat16 or float16; none means as they came in, else float32."""
    duplicates: bool | None = None
    """Write weights under their second names, too, which the official loader wants; none means if they came so."""
    shard_gigabytes: float = 5.0
    """Of a file of weights, at most."""
    license: str = "unknown"
    """For the model card: an identifier that the hub knows, such as apache-2.0."""
    ae_path: str | None = None
    """Of a CALM: where the official code shall look for the autoencoder; none means as it came in, or nowhere."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.dtype is not None and self.dtype not in dtypes_by_name():
            raise UserError(f"weights cannot be '{self.dtype}'", "--dtype", f"give {' or '.join(dtypes_by_name())}")
        if not self.shard_gigabytes > 0:
            raise UserError(f"a shard of {self.shard_gigabytes} GB is none", "--shard-gigabytes", "give more than 0")


@dataclass(frozen=True)
class _Part:
    """A model in the release: CALM, the autoencoder within it, or one alone."""

    checkpoint: Path
    run: RunConfig
    manifest: Manifest
    state: SavedState
    prefix: str = ""

    @property
    def weights(self) -> tuple[OfficialWeight, ...]:
        return official_weights(self.run.model)


def export_official(source: Path, target: Path, request: ExportRequest, meter: Meter = silent) -> Converted:
    """Write a checkpoint as an official folder; the memory that this takes is a few times the largest weight.

    Args:
        source: checkpoint of any layout, or run folder for its newest.
        target: folder to make.
        request: how.
        meter: hears of the progress.

    Raises:
        UserError: the source is damaged, has no official form or is not what its autoencoder was trained to, the target
            exists or cannot be written, or the outputs differ. Then there is nothing of the target's name that was not
            there before.
    """
    code = modelling_file()  # tells at once if the proof cannot be made
    demand_free(target)
    parts = _open_all(source, request)
    main = parts[0]
    origin = Origin.load(main.checkpoint)
    tokenizer = main.checkpoint.parent.parent / "tokenizer"
    config = _config(parts, origin, special_tokens(tokenizer), request)
    plan = list(_plan(parts, origin, request))
    _demand_sound(parts, meter)
    with new_folder(target) as aside:
        _write_weights(aside, plan, int(request.shard_gigabytes * GIGABYTE), meter)
        _write_json(aside / "config.json", config)
        ids = {name: config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        _write_json(aside / "generation_config.json", {name: value for name, value in ids.items() if value is not None})
        write_tokenizer(tokenizer, aside, verbatim=origin is not None)
        if not isinstance(main.run.model, ArConfig):
            shutil.copyfile(code.__file__, aside / MODELLING_FILE)
        done = _compare(parts, aside, meter)
        demand_equal(done.differences, str(source))
        (aside / "README.md").write_text(model_card(_card(parts, request, done.differences)), encoding="utf-8")
    return done


def verify(
    ours: Path,
    official: Path,
    autoencoder: str | None = None,
    official_autoencoder: Path | None = None,
    meter: Meter = silent,
) -> Converted:
    """Compare the outputs of a run or checkpoint of ours and of an official one.

    Args:
        ours: checkpoint, or run folder.
        official: folder, file of weights, or index.
        autoencoder: of a CALM: where ours has its autoencoder now.
        official_autoencoder: as `import_official` takes it.
        meter: hears of the progress.

    Raises:
        UserError: one of them is damaged, or they are of other kinds or sizes.
    """
    modelling_file()
    return _compare(_open_all(ours, ExportRequest(autoencoder=autoencoder)), official, meter, official_autoencoder)


def _open_all(source: Path, request: ExportRequest) -> list[_Part]:
    main = _open(find_checkpoint(source))
    model = main.run.model
    if isinstance(model, CalmConfig):
        return [main, _open_autoencoder(main, request.autoencoder or model.autoencoder)]
    for option, value in (("--autoencoder", request.autoencoder), ("--ae-path", request.ae_path)):
        if value is not None:
            raise UserError(f"a model of type '{model.type}' has no autoencoder", option, "leave it out")
    return [main]


def _open(checkpoint: Path, prefix: str = "") -> _Part:
    manifest = Manifest.verified(checkpoint)
    return _Part(checkpoint, saved_config(checkpoint), manifest, state_of(checkpoint, manifest), prefix)


def _open_autoencoder(main: _Part, place: str) -> _Part:
    """The autoencoder that a CALM was trained on.

    Raises:
        UserError: it is another one by now.
    """
    part = _open(find_checkpoint(place), AUTOENCODER_PREFIX)
    assert isinstance(main.run.model, CalmConfig)
    frozen = FrozenAutoencoder(load_autoencoder(part.checkpoint))
    check_autoencoder(main.run.model, frozen.config)
    demand_trained_on(main.manifest, frozen, part.checkpoint)
    return part


def _config(parts: list[_Part], origin: Origin | None, tokens: SpecialTokens, request: ExportRequest) -> Facts:
    """`config.json`: as it came in, or made of ours."""
    main, dtype = parts[0], request.dtype or "float32"
    if origin is None:
        config = official_config(main.run.model, tokens, _positions(main.run), dtype)
    else:
        config = dict(origin.config) | ({} if request.dtype is None else {"torch_dtype": dtype})
        if not isinstance(main.run.model, ArConfig):
            kind = kind_of(config, official_shapes(main.run.model), ORIGIN)
            config = with_code({"architectures": [CLASSES[kind]], **config}, kind)
    if len(parts) > 1:
        inner = Origin.load(parts[1].checkpoint)
        config["ae_config"] = (
            inner.config if inner else official_config(parts[1].run.model, tokens, _positions(parts[1].run), dtype)
        )
        if request.ae_path is not None:
            config["ae_path"] = request.ae_path
    return config


def _positions(run: RunConfig) -> int:
    return run.data.seq_length // run.model.patch_size


@dataclass(frozen=True)
class _Planned:
    """A weight of ours and the tensors that it becomes."""

    part: _Part
    weight: OfficialWeight
    tensors: dict[str, tuple[TensorPlan, ...]]
    """By official name within the part: the tensor, and its copies."""


def _plan(parts: list[_Part], origin: Origin | None, request: ExportRequest) -> Iterator[_Planned]:
    """All tensors, each with its type."""
    dtypes = origin.dtypes if origin is not None else {}
    for part in parts:
        for weight in part.weights:
            tensors = {}
            for name, shape in weight.shapes.items():
                full = part.prefix + name
                dtype = request.dtype or dtypes.get(full, "float32")
                wanted = [full, *(each for each in copies(full) if _wanted(each, dtypes, request.duplicates))]
                tensors[name] = tuple(TensorPlan(each, shape, dtypes_by_name()[dtype]) for each in wanted)
            yield _Planned(part, weight, tensors)


def _wanted(copy: str, dtypes: dict[str, str], duplicates: bool | None) -> bool:
    return copy in dtypes if duplicates is None else duplicates


def _demand_sound(parts: list[_Part], meter: Meter) -> None:
    """Look at all weights once.

    Raises:
        UserError: naming every one that is missing, unexpected, of another shape, not finite, or held twice.
    """
    problems: list[str] = []
    for part in parts:
        expected = {weight.name: weight.shape() for weight in part.weights}
        names, where = set(part.state.names()), part.checkpoint
        problems += [f"{where}: missing: {name}" for name in sorted(expected.keys() - names)]
        problems += [f"{where}: unexpected: {name}" for name in sorted(names - expected.keys())]
        twice = part.state.twice()
        problems += [f"{where}: {problem}" for problem in twice]
        total, done = sum(torch.Size(shape).numel() for shape in expected.values()), 0
        for name in sorted(expected.keys() & names) if not twice else []:
            done += torch.Size(expected[name]).numel()
            meter("check", done, total)
            if (shape := part.state.shape(name)) != expected[name]:
                problems.append(f"{where}: {name}: shape {shape} instead of {expected[name]}")
            elif bad := int((~part.state.whole("weight", name).isfinite()).sum()):
                problems.append(f"{where}: {name}: {bad} elements are not finite")
    if problems:
        raise UserError(
            "these weights are not those of the model in the checkpoint's config:\n  " + "\n  ".join(problems),
            str(parts[0].checkpoint),
            "take another checkpoint",
        )


def _write_weights(folder: Path, plan: list[_Planned], shard_bytes: int, meter: Meter) -> None:
    tensors = [tensor for each in plan for group in each.tensors.values() for tensor in group]
    total, done = sum(tensor.bytes for tensor in tensors), 0
    with closing(TensorFilesWriter(folder, tensors, shard_bytes)) as writer:
        for each in plan:
            ours = each.part.state.whole("weight", each.weight.name)
            for name, values in each.weight.parts(ours, each.part.run.model).items():
                for tensor in each.tensors[name]:
                    writer.write(tensor.name, values.to(tensor.dtype))
                    done += tensor.bytes
                    meter("write", done, total)
        writer.finish()


def _compare(parts: list[_Part], path: Path, meter: Meter, autoencoder: Path | None = None) -> Converted:
    """The outputs of the checkpoint and of an official one, whose files are looked at first."""
    official = open_official(path, autoencoder)
    demand_sound(official, meter)
    ours = official_shapes(parts[0].run.model) | {
        AUTOENCODER_PREFIX + name: shape
        for part in parts[1:]
        for name, shape in official_shapes(part.run.model).items()
    }
    if ours != official.shapes:
        raise UserError(
            "the two models have other weights", f"{parts[0].checkpoint} and {path}", "compare two of a size"
        )
    main, *inner = (Ours(part.run.model, part.state) for part in parts)
    found = compare_outputs(main, inner[0] if inner else None, official, meter)
    return Converted(found, official.notes)


def _card(parts: list[_Part], request: ExportRequest, found: Differences) -> Card:
    names = {"autoencoder": "autoencoder", "calm": "model, without its autoencoder", "ar": "model"}
    counts = {
        names[part.run.model.type]: sum(torch.Size(weight.shape()).numel() for weight in part.weights) for part in parts
    }
    return Card(
        run=parts[0].run, checkpoint=parts[0].checkpoint, parameters=counts, license=request.license, proof=found.text()
    )


def _write_json(file: Path, content: Facts) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
