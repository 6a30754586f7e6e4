"""Official checkpoints: what is in them is taken over, and a damaged one is refused with what is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from calm_megatron.checkpoint.official_format import load_official_autoencoder, load_official_calm
from calm_megatron.config.errors import UserError
from calm_megatron.parallel.grid import Grid


@pytest.fixture
def ae(golden: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of an official autoencoder, to be damaged."""
    return copied(golden("ae"), tmp_path / "ae")


@pytest.fixture
def energy(golden: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of an official CALM."""
    return copied(golden("energy"), tmp_path / "energy")


def copied(source: Path, target: Path) -> Path:
    target.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(source / name, target / name)
    return target


def changed(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the weights in the file."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def test_the_configs_are_taken_over(ae: Path, energy: Path, grid: Grid) -> None:
    autoencoder = load_official_autoencoder(ae).config
    assert (autoencoder.patch_size, autoencoder.latent_size, autoencoder.vocab_size) == (4, 16, 512)
    assert (autoencoder.hidden_size, autoencoder.ffn_hidden_size) == (32, 80)
    assert (autoencoder.dropout, autoencoder.kl_clamp, autoencoder.kl_weight) == (0.15, 0.5, 1e-3)
    calm = load_official_calm(energy, ae).config
    assert (calm.num_layers, calm.hidden_size, calm.ffn_hidden_size) == (4, 64, 176)
    assert (calm.num_attention_heads, calm.num_query_groups, calm.pad_token_id) == (4, 2, 511)
    assert (calm.head.num_layers, calm.head.noise_size, calm.head.num_samples, calm.head.beta) == (2, 64, 8, 1.0)


def test_weights_are_fp32_whatever_the_file_holds(ae: Path, energy: Path, grid: Grid) -> None:
    assert load_file(energy / "model.safetensors")["transformer.norm.weight"].dtype == torch.bfloat16
    assert all(weight.dtype == torch.float32 for weight in load_official_calm(energy, ae).parameters())


def test_an_equal_output_matrix_is_taken_for_tied(ae: Path) -> None:
    embedding = "encoder.embed_tokens.weight"
    changed(ae, lambda weights: weights.update({"decoder.lm_head_weight": weights[embedding].clone()}))
    module = load_official_autoencoder(ae)
    assert torch.equal(module.encoder.embed_tokens.weight, load_file(ae / "model.safetensors")[embedding])


def test_another_output_matrix_is_refused(ae: Path) -> None:
    changed(ae, lambda weights: weights.update({"decoder.lm_head_weight": weights["encoder.embed_tokens.weight"] + 1}))
    with pytest.raises(UserError, match=r"output matrix differs from its embedding(.|\n)*decoder.lm_head_weight"):
        load_official_autoencoder(ae)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_refused(ae: Path, name: str) -> None:
    (ae / name).unlink()
    with pytest.raises(UserError, match=f"there is no {name}") as caught:
        load_official_autoencoder(ae)
    assert str(ae) in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_cut_file_is_refused(ae: Path, name: str) -> None:
    content = (ae / name).read_bytes()
    (ae / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="the official checkpoint cannot be read") as caught:
        load_official_autoencoder(ae)
    assert str(ae) in str(caught.value)


def test_a_missing_weight_is_named(ae: Path, energy: Path, grid: Grid) -> None:
    changed(ae, lambda weights: weights.pop("decoder.norm.weight"))
    with pytest.raises(UserError, match=r"missing: decoder.norm.weight"):
        load_official_autoencoder(ae)


def test_a_missing_weight_of_calm_is_named(ae: Path, energy: Path, grid: Grid) -> None:
    changed(energy, lambda weights: weights.pop("transformer.layers.2.self_attn.v_proj.weight"))
    with pytest.raises(UserError, match=r"no weight 'transformer.layers.2.self_attn.v_proj.weight'"):
        load_official_calm(energy, ae)


def test_an_unexpected_weight_is_named(ae: Path) -> None:
    changed(ae, lambda weights: weights.update({"encoder.extra.weight": torch.zeros(2)}))
    with pytest.raises(UserError, match=r"unexpected: encoder.extra.weight"):
        load_official_autoencoder(ae)


def test_weights_of_another_shape_are_named(ae: Path, energy: Path, grid: Grid) -> None:
    changed(energy, lambda weights: weights.update({"transformer.norm.weight": torch.zeros(3)}))
    with pytest.raises(UserError, match=r"final_norm.weight: shape \(3,\) instead of \(64,\)"):
        load_official_calm(energy, ae)


def test_an_autoencoder_of_another_size_is_refused(ae: Path, energy: Path, grid: Grid) -> None:
    config = json.loads((energy / "config.json").read_text())
    (energy / "config.json").write_text(json.dumps({**config, "patch_size": 2}))
    with pytest.raises(UserError, match=r"model.patch_size = 2, but the autoencoder has 4"):
        load_official_calm(energy, ae)
