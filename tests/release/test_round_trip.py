"""Golden checkpoints come in with the figures of the official code, and go out again bit by bit."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from calm_megatron.checkpoint.load import load_autoencoder, load_calm
from calm_megatron.checkpoint.official_files import OfficialFiles
from calm_megatron.parallel.grid import Grid
from calm_megatron.release.exporting import ExportRequest, export_official
from calm_megatron.release.importing import import_official
from tests.official import loss_noise, relative, sampling_noise
from tests.release.golden_folders import FIGURES, golden_folder

AUTOENCODERS = ["ae", "ae_k2"]
CALMS = ["energy", "energy_k2", "energy_k2_bin", "diffusion", "flow"]


@pytest.fixture
def figures(golden: Callable[[str], Path]) -> Callable[[str], dict[str, Tensor]]:
    """Recorded tensors of a golden checkpoint."""
    return lambda name: load_file(golden(FIGURES.get(name, name)) / "io.safetensors")


@pytest.mark.parametrize("name", AUTOENCODERS)
@torch.no_grad()
def test_an_autoencoder_gives_its_figures(
    imported: Callable[[str], Path], figures: Callable[[str], dict[str, Tensor]], name: str
) -> None:
    module, recorded = load_autoencoder(imported(name)), figures(name)
    mean_RZ, log_std_RZ = module.encoder(recorded["input_ids"].view(-1, module.config.patch_size))
    assert relative(mean_RZ, recorded["enc_mean"].flatten(0, 1)) < 1e-5
    assert relative(log_std_RZ, recorded["enc_log_std"].flatten(0, 1)) < 1e-5
    assert relative(module.logits(recorded["dec_latents"][0]).flatten(0, 1), recorded["dec_logits"][0]) < 1e-5


@pytest.mark.parametrize("name", CALMS)
@torch.no_grad()
def test_a_calm_gives_its_figures_in_training_too(
    imported: Callable[[str], Path], figures: Callable[[str], dict[str, Tensor]], grid: Grid, name: str
) -> None:
    model, recorded = load_calm(imported(name)), figures(name)
    context_BT = recorded["input_ids"][:, : -model.config.patch_size]
    assert relative(model.hidden_states(context_BT), recorded["backbone_hidden"]) < 1e-5
    hidden_RH = recorded["backbone_hidden"].flatten(0, 1)
    if "head_latents" in recorded:
        latents_NRZ = model.head.sample(hidden_RH, loss_noise(recorded), 8)
        assert relative(latents_NRZ, recorded["head_latents"]) < 1e-5
    else:
        assert relative(model.head.sample(hidden_RH, sampling_noise(recorded), 2), recorded["sample_latents"]) < 1e-5
    # The targets are rounded as in the official training, without being told to.
    loss = model.train()(recorded["input_ids"], loss_noise(recorded)).loss
    assert float(loss) == pytest.approx(float(recorded["train_loss"]), rel=1e-5)


@pytest.mark.parametrize("name", [*AUTOENCODERS, *CALMS])
def test_what_came_in_goes_out_bit_by_bit(
    golden: Callable[[str], Path], imported: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    source = golden_folder(golden, name)
    done = export_official(imported(name), tmp_path / "out", ExportRequest())
    assert done.differences.equal
    before, after = OfficialFiles(source), OfficialFiles(tmp_path / "out")
    demand_equal_tensors(before, after)
    assert {key: after.config[key] for key in before.config} == before.config
    assert after.config.keys() - before.config.keys() <= {"auto_map", "ae_config"}


def demand_equal_tensors(before: OfficialFiles, after: OfficialFiles) -> None:
    assert before.tensors.keys() == after.tensors.keys()
    for tensor in before.tensors:
        ours, theirs = after.read(tensor), before.read(tensor)
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), tensor


def test_it_goes_around_in_shards_with_copies_and_comes_in_from_a_file(
    golden: Callable[[str], Path], imported: Callable[[str], Path], tmp_path: Path
) -> None:
    request = ExportRequest(shard_gigabytes=2e-4, duplicates=True, dtype="float32", ae_path="somewhere/ae")
    export_official(imported("energy"), tmp_path / "out", request)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2 and set(index["weight_map"].values()) == set(files)
    out = OfficialFiles(tmp_path / "out")
    assert out.config["ae_path"] == "somewhere/ae" and out.config["torch_dtype"] == "float32"
    copies = {name for name in out.tensors if name.startswith("generative_head.")}
    names = {name for name in out.tensors if name.startswith("mlp_generator.")}
    assert {name.replace("generative_head", "mlp_generator") for name in copies} == names
    assert "ae_model.decoder.lm_head_weight" in out.tensors
    plain = OfficialFiles(golden("energy"))
    assert all(torch.equal(out.read(name), plain.read(name).float()) for name in plain.tensors)
    # The same from the index, and from a pickle of all of it, whose config tells no architecture any more.
    import_official(tmp_path / "out" / "model.safetensors.index.json", tmp_path / "again")
    torch.save({name: out.read(name) for name in out.tensors}, tmp_path / "weights.bin")
    config = {key: value for key, value in out.config.items() if key != "architectures"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    import_official(tmp_path / "weights.bin", tmp_path / "once_more")
    for name in ("again", "once_more"):
        export_official(tmp_path / name, tmp_path / f"{name}_out", ExportRequest(shard_gigabytes=2e-4))
        demand_equal_tensors(out, OfficialFiles(tmp_path / f"{name}_out"))


def test_without_its_autoencoders_config_sizes_are_read_off_the_weights(
    copied: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copied("energy")  # its ../ae is not there
    done = import_official(folder, tmp_path / "in")
    assert "ae_path = '../ae' leads nowhere" in done.notes[0] and done.differences.equal
    config = load_autoencoder(tmp_path / "in" / "autoencoder").config
    assert (config.hidden_size, config.ffn_hidden_size, config.num_encoder_layers) == (32, 80, 2)


@pytest.mark.parametrize("head", ["energy", "flow", "diffusion"])
def test_a_head_is_told_by_its_weights(copied: Callable[[str], Path], tmp_path: Path, head: str) -> None:
    folder = copied(head)
    config = json.loads((folder / "config.json").read_text())
    del config["architectures"]
    (folder / "config.json").write_text(json.dumps(config))
    if head == "energy":  # under the other of its two names
        weights = load_file(folder / "model.safetensors")
        weights |= {name.replace("mlp_generator", "generative_head"): value.clone() for name, value in weights.items()}
        save_file(weights, folder / "model.safetensors")
    import_official(folder, tmp_path / "in")
    export_official(tmp_path / "in", tmp_path / "out", ExportRequest())
    assert OfficialFiles(tmp_path / "out").config["architectures"] == [f"{head.capitalize()}Transformer"]
