"""Takes an official checkpoint in: what comes out is a folder like that of a run, with a checkpoint of weights alone.

<target>/
    config.yaml                     the model; nothing is known of data and training
    tokenizer/                      if there was one
    checkpoints/step_00000000/      weights in fp32, and official.json: config and types as they came
    autoencoder/                    of a CALM: the same for the autoencoder within it
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from calm_megatron.checkpoint.files import FileEntry
from calm_megatron.checkpoint.load import load_autoencoder
from calm_megatron.checkpoint.manifest import Manifest
from calm_megatron.checkpoint.meter import Meter, silent
from calm_megatron.checkpoint.official_config import SpecialTokens, official_config
from calm_megatron.checkpoint.official_state import OfficialModel, OfficialState, demand_sound, open_official
from calm_megatron.checkpoint.pieces import Place
from calm_megatron.checkpoint.progress import Progress
from calm_megatron.checkpoint.publish import demand_free, new_folder
from calm_megatron.checkpoint.shards import write_shard
from calm_megatron.checkpoint.store import checkpoints_of
from calm_megatron.config.checks import check
from calm_megatron.config.files import to_yaml
from calm_megatron.config.schema import (
    ArConfig,
    DataConfig,
    RunConfig,
    RunSection,
    TrainConfig,
)
from calm_megatron.model.autoencoder import FrozenAutoencoder
from calm_megatron.model.official import AUTOENCODER_PREFIX
from calm_megatron.release.proof import Differences, Ours, compare_outputs, demand_equal, modelling_file
from calm_megatron.release.tokenizer_files import copy_tokenizer, demand_whole_tokenizer

ORIGIN = "official.json"
"""In the checkpoint: what its weights came from, so that they can be given away as they came."""
UNKNOWN_DATA = "unknown"
"""The data set of a model that came without one; evaluation names its own."""
_AUTOENCODER = "autoencoder"
_CHECKPOINT = Path("checkpoints") / "step_00000000"


@dataclass(frozen=True)
class Origin:
    """What an imported checkpoint was."""

    config: dict[str, object]
    """Content of its `config.json`."""
    dtypes: dict[str, str]
    """Type of each tensor, copies among them, by official name; of a CALM also those of its autoencoder."""

    def save(self, folder: Path) -> None:
        """Write as JSON."""
        (folder / ORIGIN).write_text(json.dumps(asdict(self), indent=1) + "\n")

    @staticmethod
    def load(checkpoint: Path) -> "Origin | None":
        """Of a checkpoint; none if it was trained here."""
        file = checkpoint / ORIGIN
        return Origin(**json.loads(file.read_text())) if file.is_file() else None


@dataclass(frozen=True)
class Converted:
    """What a conversion tells in the end."""

    differences: Differences
    notes: tuple[str, ...]


def import_official(source: Path, target: Path, autoencoder: Path | None = None, meter: Meter = silent) -> Converted:
    """Take an official checkpoint in; the memory that this takes is a few times the largest weight.

    Args:
        source: folder, file of weights, or index.
        target: folder to make.
        autoencoder: of a CALM: official folder with its autoencoder's config, where its own does not tell.
        meter: hears of the progress.

    Raises:
        UserError: the source or its tokenizer is damaged or foreign, the target exists or cannot be written, or the
            outputs differ. Then there is nothing of the target's name that was not there before.
    """
    modelling_file()  # tells at once if the proof cannot be made
    demand_free(target)
    final = target.absolute()
    model = open_official(source, autoencoder, named=str(final / _AUTOENCODER))
    runs = {state: _run_config(model, state, final) for state in _states(model)}
    demand_whole_tokenizer(model.files.folder)
    demand_sound(model, meter)
    with new_folder(target) as aside:
        # No fingerprint of the tokenizer: whoever saves its file puts the same in other words.
        fingerprints: dict[str, str] = {}
        copy_tokenizer(model.files.folder, aside / "tokenizer")
        inner = None
        if model.autoencoder is not None:
            inner = aside / _AUTOENCODER
            copy_tokenizer(model.files.folder, inner / "tokenizer")
            _write(inner, model.autoencoder, runs[model.autoencoder], _origin_of_inner(model), {}, meter)
            fingerprints["autoencoder"] = FrozenAutoencoder(load_autoencoder(inner)).fingerprint()
        _write(aside, model.state, runs[model.state], _origin(model), fingerprints, meter)
        found = compare_outputs(Ours.of(aside), None if inner is None else Ours.of(inner), model, meter)
        demand_equal(found, str(source))
    return Converted(found, model.notes)


def _states(model: OfficialModel) -> list[OfficialState]:
    return [model.state] if model.autoencoder is None else [model.autoencoder, model.state]


def _run_config(model: OfficialModel, state: OfficialState, final: Path) -> RunConfig:
    """A config that says what is known, and is refused where a run's would be."""
    config = state.config
    positions = model.files.config.get("max_position_embeddings")
    length = positions if isinstance(positions, int) and positions > 1 else 2048
    if not isinstance(config, ArConfig):
        length *= config.patch_size  # they are patches
    within = state is model.autoencoder
    run = RunConfig(
        run=RunSection(directory=str(final / _AUTOENCODER if within else final)),
        model=config,
        data=DataConfig(data_path=UNKNOWN_DATA, seq_length=length),
        train=TrainConfig(train_iters=1),
    )
    check(run)
    return run


def _origin(model: OfficialModel) -> Origin:
    return Origin(model.files.config, {name: _dtype(model, name) for name in model.files.tensors})


def _origin_of_inner(model: OfficialModel) -> Origin:
    assert model.autoencoder is not None
    names = [name for name in model.files.tensors if name.startswith(AUTOENCODER_PREFIX)]
    dtype = _dtype(model, names[0])
    tokens = SpecialTokens(*(model.files.config.get(f"{role}_token_id") for role in ("bos", "eos", "pad")))
    positions = model.files.config.get("max_position_embeddings", 2048)
    config = official_config(model.autoencoder.config, tokens, positions, dtype)
    return Origin(config, {name.removeprefix(AUTOENCODER_PREFIX): _dtype(model, name) for name in names})


def _dtype(model: OfficialModel, name: str) -> str:
    return str(model.files.tensors[name].dtype).removeprefix("torch.")


def _write(
    folder: Path, state: OfficialState, run: RunConfig, origin: Origin, fingerprints: dict[str, str], meter: Meter
) -> None:
    """A run folder with one checkpoint."""
    checkpoint = folder / _CHECKPOINT
    checkpoint.mkdir(parents=True)
    shard = _write_shard(checkpoint / "rank_00000.safetensors", state, meter)
    Progress().save(checkpoint / "progress.json")
    origin.save(checkpoint)
    text = to_yaml(run)
    for place in (checkpoint, folder):
        (place / "config.yaml").write_text(text)
    others = tuple(FileEntry.of(checkpoint / name) for name in ("progress.json", "config.yaml", ORIGIN))
    layout = {
        "world_size": 1,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "data_parallel_size": 1,
    }
    Manifest(layout=layout, engine={}, fingerprints=fingerprints, files=(shard, *others)).save(checkpoint)
    (checkpoints_of(folder) / "latest").write_text(f"{checkpoint.name}\n")


def _write_shard(path: Path, state: OfficialState, meter: Meter) -> FileEntry:
    shapes = {name: state.shape(name) for name in state.names()}
    places = [Place(name, 0, 1, shape, 0, torch.Size(shape).numel()) for name, shape in shapes.items()]
    total, done = sum(place.stop for place in places) * torch.float32.itemsize, 0

    def read(kind: str, place: Place) -> Tensor:
        nonlocal done
        values = state.whole(kind, place.name).flatten()
        done += values.nbytes
        meter("write", done, total)
        return values

    return write_shard(path, places, read, ("weight",))
