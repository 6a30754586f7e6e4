"""What is damaged or foreign is refused with what is wrong, all of it, and leaves nothing behind."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from calm_megatron.checkpoint.load import find_checkpoint
from calm_megatron.checkpoint.manifest import Manifest
from calm_megatron.checkpoint.pieces import Place
from calm_megatron.checkpoint.saved_state import SavedState
from calm_megatron.checkpoint.shards import write_shard
from calm_megatron.config.errors import UserError
from calm_megatron.release import importing
from calm_megatron.release.exporting import ExportRequest, export_official
from calm_megatron.release.importing import import_official
from calm_megatron.release.proof import Differences
from tests.checkpoint.damage import DAMAGES, files_of_at_most

V_PROJ = "transformer.layers.2.self_attn.v_proj.weight"
NORM = "transformer.norm.weight"
Weights = dict[str, Tensor]


def weights(change: Callable[[Weights], object]) -> Callable[[Path], None]:
    """Change the tensors in the file."""

    def apply(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors")

    return apply


def config(**fields: Any) -> Callable[[Path], None]:
    """Change fields of config.json; None takes one away."""

    def apply(folder: Path) -> None:
        content = {**json.loads((folder / "config.json").read_text()), **fields}
        kept = {name: value for name, value in content.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))

    return apply


def sharded(change: Callable[[dict[str, str]], object]) -> Callable[[Path], None]:
    """Two shards and an index, in which names and files are changed."""

    def apply(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        table = {name: f"part_{number % 2}.safetensors" for number, name in enumerate(sorted(found))}
        for file in set(table.values()):
            save_file({name: found[name] for name in found if table[name] == file}, folder / file)
        change(table)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))

    return apply


def with_infinity(found: Weights) -> None:
    found[NORM][3] = torch.inf
    found[V_PROJ][0, :2] = torch.nan


def several(found: Weights) -> None:
    del found[V_PROJ]
    found["transformer.extra"] = torch.zeros(2)
    found[NORM] = torch.zeros(3)
    found["embed_proj.2.bias"][0] = torch.nan


class Evil:
    """What a pickle must not run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("ran").touch, ())


def as_pickle(content: object) -> Callable[[Path], None]:
    """In the place of the safetensors file."""

    def apply(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        torch.save(content, folder / "pytorch_model.bin")

    return apply


def plain_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))


def cut(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return apply


def copy_that_differs(name: str, copy: str) -> Callable[[Weights], None]:
    def apply(found: Weights) -> None:
        found[copy] = found[name].clone()
        found[copy][0] += 1

    return apply


DAMAGED = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "there is no config.json"),
    "cut config": (cut("config.json"), "config.json cannot be read"),
    "config is a list": (lambda folder: (folder / "config.json").write_text("[1]"), "holds no settings by name"),
    "empty tokenizer": (lambda folder: (folder / "tokenizer.json").touch(), "not a Hugging Face tokenizer"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "there is neither model.safetensors nor"),
    "cut weights": (cut("model.safetensors"), "the file of weights cannot be read"),
    "missing": (weights(lambda found: found.pop(V_PROJ)), f"missing: {V_PROJ}"),
    "unexpected": (weights(lambda found: found.update(extra=torch.zeros(2))), "unexpected: extra"),
    "bias of a foreign model": (
        weights(lambda found: found.update({V_PROJ.replace("weight", "bias"): torch.zeros(32)})),
        "unexpected: transformer.layers.2.self_attn.v_proj.bias",
    ),
    "shape": (weights(lambda found: found.update({NORM: torch.zeros(3)})), rf"{NORM}: shape \(3,\) instead of \(64,\)"),
    "whole numbers": (
        weights(lambda found: found.update({NORM: torch.ones(64, dtype=torch.int64)})),
        f"{NORM}: it holds no fp32, bf16 or fp16 numbers",
    ),
    "not finite": (weights(with_infinity), f"{NORM}: 1 of 64 elements are not finite(.|\n)*{V_PROJ}: 2 of 2048"),
    "several at once": (
        weights(several),
        rf"missing: {V_PROJ}(.|\n)*unexpected: transformer.extra(.|\n)*embed_proj.2.bias: 1 of(.|\n)*{NORM}: shape",
    ),
    "head and its copy differ": (
        weights(copy_that_differs("mlp_generator.noise_embd.bias", "generative_head.noise_embd.bias")),
        "generative_head.noise_embd.bias differs from mlp_generator.noise_embd.bias",
    ),
    "untied autoencoder": (
        weights(copy_that_differs("ae_model.encoder.embed_tokens.weight", "ae_model.decoder.lm_head_weight")),
        "ae_model.decoder.lm_head_weight differs from ae_model.encoder.embed_tokens.weight",
    ),
    "autoencoder left out": (
        weights(lambda found: [found.pop(name) for name in list(found) if name.startswith("ae_model.")]),
        r"the autoencoder is not in the checkpoint: ae_model.\* is missing",
    ),
    "field missing": (config(num_attention_heads=None, rms_norm_eps=None), "(?s)rms_norm_eps is missing.*num_att"),
    "field of a wrong type": (config(hidden_size="64"), "hidden_size cannot be '64'"),
    "scaled rotary embedding": (
        config(rope_scaling={"type": "linear", "factor": 2.0}),
        "rope_scaling is .* only None is known here",
    ),
    "other activation and biases": (config(hidden_act="gelu", attention_bias=True), "hidden_act(.|\n)*attention_bias"),
    "other head size": (config(head_dim=8), "head_dim is 8"),
    "beta out of bounds": (config(beta=2.5), "beta cannot be 2.5"),
    "other K": (config(patch_size=2), r"embed_proj.0.weight: shape \(128, 256\) instead of \(128, 128\)"),
    "more layers than weights": (config(num_hidden_layers=5), "missing: transformer.layers.4.mlp.up_proj.weight"),
    "foreign architecture": (config(architectures=["GPT2LMHeadModel"]), "'GPT2LMHeadModel' is no official CALM"),
    "index names a lost file": (
        sharded(lambda table: table.update({NORM: "part_2.safetensors"})),
        "the index names the file part_2.safetensors, which is not there",
    ),
    "index leads outside": (
        sharded(lambda table: table.update({NORM: "../official/energy/part_0.safetensors"})),
        "which is not there",
    ),
    "index names a lost tensor": (
        sharded(lambda table: table.update({"transformer.ghost": "part_0.safetensors"})),
        "transformer.ghost is not in it",
    ),
    "index lacks a tensor": (sharded(lambda table: table.pop(NORM)), f"{NORM} is in it, and not in the index"),
    "index without a table": (
        lambda folder: (folder / "model.safetensors.index.json").write_text("{}"),
        "the index has no weight_map",
    ),
    "pickle that runs something": (as_pickle({"a": Evil()}), "the file holds more than weights"),
    "pickle of a list": (as_pickle([torch.zeros(2)]), "it holds no tensors by name"),
    "pickle of numbers": (as_pickle({"a": 1}), "a is no tensor"),
    "pickle of another kind": (plain_pickle, "the file of weights cannot be read"),
}


@pytest.mark.parametrize("damage", list(DAMAGED))
def test_a_damaged_or_foreign_checkpoint_is_refused(
    copied: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    apply, message = DAMAGED[damage]
    folder = copied("energy")
    apply(folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        import_official(folder, tmp_path / "in")
    assert [path.name for path in tmp_path.iterdir()] == ["official"]


@pytest.mark.parametrize("field", ["num_encoder_layers", "num_decoder_layers"])
def test_an_autoencoder_with_an_unused_layer_is_refused(
    copied: Callable[[str], Path], tmp_path: Path, field: str
) -> None:
    folder = copied("ae")
    config(**{field: 3})(folder)
    with pytest.raises(UserError, match=f"model.{field} = 3: half of the layers"):
        import_official(folder, tmp_path / "in")
    assert not (tmp_path / "in").exists()


def test_a_target_that_exists_is_left_alone(copied: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="there is something of this name"):
        import_official(copied("ae"), tmp_path / "in")
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["mine.txt"]


def test_a_full_disk_leaves_nothing(copied: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied("energy")
    with files_of_at_most(1000), pytest.raises(UserError, match="the result could not be written"):
        import_official(folder, tmp_path / "in")
    assert [path.name for path in tmp_path.iterdir()] == ["official"]


def test_outputs_that_differ_leave_nothing(
    copied: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied("energy")
    written = importing._write_shard

    def write_wrong(path: Path, state: Any, meter: Any) -> Any:
        """As if query and key were joined in another order."""
        entry = written(path, state, meter)
        if "autoencoder" not in path.parts:
            name = "layers.1.self_attention.linear_qkv.weight"
            whole = state.whole("weight", name)
            state = _Replaced(state, name, whole.flip(0))
            entry = written(path, state, meter)
        return entry

    monkeypatch.setattr(importing, "_write_shard", write_wrong)
    with pytest.raises(UserError, match="the two sides do not give the same: largest differences: hidden states"):
        import_official(folder, tmp_path / "in")
    assert [path.name for path in tmp_path.iterdir()] == ["official"]


class _Replaced:
    """A state with one weight in the place of another."""

    def __init__(self, state: Any, name: str, weight: Tensor) -> None:
        self._state, self._name, self._weight = state, name, weight

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def whole(self, kind: str, name: str) -> Tensor:
        found: Tensor = self._weight if name == self._name else self._state.whole(kind, name)
        return found


def test_what_is_no_number_is_not_equal() -> None:
    assert not Differences({"loss": float("nan")}).equal and Differences({"loss": 1e-6}).equal


@pytest.fixture
def run(imported: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint of ours, to be damaged; its autoencoder lies elsewhere, whole."""
    shutil.copytree(find_checkpoint(imported("energy")), tmp_path / "ours")
    return tmp_path / "ours"


def rewritten(checkpoint: Path, change: Callable[[Weights], object], files: int = 1) -> None:
    """Write the weights again, changed, as if a run had saved them so, with a manifest that fits."""
    manifest = Manifest.load(checkpoint)
    state = SavedState(manifest.shards(checkpoint), None)
    found = {name: state.whole("weight", name) for name in state.names()}
    change(found)
    entries = []
    for number in range(files):
        places = [Place(name, 0, 1, tuple(value.shape), 0, value.numel()) for name, value in found.items()]
        path = checkpoint / f"rank_{number:05d}.safetensors"
        # Each file has all of it, and the second another value in the last norm.
        values = {
            name: value.flatten() + (number if name == "final_norm.weight" else 0) for name, value in found.items()
        }
        entries.append(write_shard(path, places, lambda kind, place, values=values: values[place.name], ("weight",)))
    others = [entry for entry in manifest.files if not entry.name.endswith(".safetensors")]
    Manifest(layout=manifest.layout, engine={}, fingerprints=manifest.fingerprints, files=(*entries, *others)).save(
        checkpoint
    )


OURS = {
    "missing": (lambda found: found.pop("final_norm.weight"), 1, "missing: final_norm.weight"),
    "unexpected": (lambda found: found.update(extra=torch.zeros(2)), 1, "unexpected: extra"),
    "shape": (lambda found: found.update({"final_norm.weight": torch.ones(3)}), 1, r"shape \(3,\) instead of \(64,\)"),
    "not finite": (lambda found: found["final_norm.weight"].fill_(torch.nan), 1, "64 elements are not finite"),
    "replicas that differ": (
        lambda found: None,
        2,
        r"final_norm.weight differs between rank_00000.safetensors and rank_00001.safetensors",
    ),
}


@pytest.mark.parametrize("damage", list(OURS))
def test_weights_that_are_not_the_models_are_not_given_away(run: Path, tmp_path: Path, damage: str) -> None:
    change, files, message = OURS[damage]
    rewritten(run, change, files)
    with pytest.raises(UserError, match=message):
        export_official(run, tmp_path / "out", ExportRequest())
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("kind", list(DAMAGES))
def test_a_damaged_file_of_ours_is_named(run: Path, tmp_path: Path, kind: str) -> None:
    DAMAGES[kind](run / "rank_00000.safetensors")
    with pytest.raises(UserError, match=r"rank_00000\.safetensors"):
        export_official(run, tmp_path / "out", ExportRequest())
    assert not (tmp_path / "out").exists()


def test_another_autoencoder_is_not_given_along(run: Path, imported: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this is not the autoencoder that the model was trained on"):
        other = tmp_path / "other"
        shutil.copytree(find_checkpoint(imported("ae")), other)
        rewritten(other, lambda found: found["encoder.norm.weight"].add_(1))
        export_official(run, tmp_path / "out", ExportRequest(autoencoder=str(other)))
    assert not (tmp_path / "out").exists()


def test_an_option_that_has_no_effect_is_refused(imported: Callable[[str], Path], tmp_path: Path) -> None:
    for option in ("autoencoder", "ae_path"):
        with pytest.raises(UserError, match=re.escape("a model of type 'autoencoder' has no autoencoder")):
            export_official(imported("ae"), tmp_path / "out", ExportRequest(**{option: "there"}))
