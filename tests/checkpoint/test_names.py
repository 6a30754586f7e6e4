"""The table of names covers every weight once, and joining is undone by splitting."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

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
from calm_megatron.model.official import official_weights
from calm_megatron.parallel.grid import Grid

CALM = CalmConfig(
    autoencoder="in memory",
    vocab_size=11,
    patch_size=2,
    latent_size=4,
    num_layers=12,  # two digits
    hidden_size=24,
    ffn_hidden_size=20,
    num_attention_heads=4,
    num_query_groups=2,
)
HEADS: dict[str, HeadConfig] = {
    "energy": EnergyHeadConfig(num_layers=11, noise_size=3),
    "diffusion": DiffusionHeadConfig(num_layers=11),
    "flow": FlowHeadConfig(num_layers=11),
}


def built(head: str) -> Calm:
    """A model with many small layers."""
    autoencoder = AutoencoderConfig(vocab_size=11, patch_size=2, latent_size=4, hidden_size=4, ffn_hidden_size=4)
    model = Calm(dataclasses.replace(CALM, head=HEADS[head]), FrozenAutoencoder(Autoencoder(autoencoder)))
    model.initialise(seed=1)
    return model


@pytest.fixture(scope="module", params=HEADS)
def calm(grid: Grid, request: pytest.FixtureRequest) -> Calm:
    """One with each head."""
    return built(request.param)


def test_every_weight_has_one_entry(calm: Calm) -> None:
    for name, _ in calm.named_parameters():
        pattern = re.sub(r"\.\d+\.", ".{i}.", name)
        assert [entry.ours for entry in names.CALM_ENTRIES].count(pattern) == 1, name
        entry, _ = names.entry_of(name)
        assert entry.ours == pattern


def test_every_entry_serves_a_weight(grid: Grid) -> None:
    named = [name for head in HEADS for name, _ in built(head).named_parameters()]
    patterns = {re.sub(r"\.\d+\.", ".{i}.", name) for name in named}
    assert {entry.ours for entry in names.CALM_ENTRIES} == patterns


def test_official_names_belong_to_one_weight_each_and_have_its_numbers(calm: Calm) -> None:
    seen: dict[str, str] = {}
    for name, _ in calm.named_parameters():
        for official in names.entry_of(name)[1]:
            assert official not in seen, (name, seen.get(official))
            seen[official] = name
            ours, theirs = (re.findall(r"(?:layers|blocks)\.(\d+)\.", text) for text in (name, official))
            assert ours == theirs
    assert "transformer.layers.11.mlp.up_proj.weight" in seen


@pytest.mark.parametrize("case", ["energy", "energy_k2", "diffusion", "flow"])
def test_the_table_has_the_names_of_an_official_file(golden: Callable[[str], Path], grid: Grid, case: str) -> None:
    weights = load_file(golden(case) / "model.safetensors")
    calm = built(case.removesuffix("_k2"))
    # An official energy head is in the file under two names.
    twice = ("ae_model.", "generative_head.") if case.startswith("energy") else ("ae_model.",)
    official = {name for name in weights if not name.startswith(twice)}
    layers = {int(name.split(".")[2]) for name in official if name.startswith("transformer.layers.")}
    ours = set()
    for name, _ in calm.named_parameters():
        numbers = re.findall(r"(?:layers|blocks)\.(\d+)\.", name)
        limit = len(layers) if name.startswith("layers.") else 2
        if not numbers or int(numbers[0]) < limit:
            ours |= set(names.entry_of(name)[1])
    assert ours == official


def test_an_unknown_name_is_an_error() -> None:
    for name in ("layers.x.mlp.linear_fc2.weight", "layers.1.mlp.linear_fc2.weight.more", "lm_head.weight"):
        with pytest.raises(KeyError):
            names.entry_of(name)


@pytest.mark.parametrize("groups", [None, 1, 2, 4])
def test_splitting_undoes_joining_of_grouped_queries(groups: int | None) -> None:
    config = dataclasses.replace(CALM, num_query_groups=groups)
    heads, head_size, kept = 4, 6, groups or 4
    query, key, value = torch.randn(24, 5), torch.randn(kept * head_size, 5), torch.randn(kept * head_size, 5)
    joined = names.join([query, key, value], "groups", config)
    parts = names.split(joined, "groups", config)
    assert all(torch.equal(part, whole) for part, whole in zip(parts, (query, key, value), strict=True))
    # Each group lies together: its heads of queries, its key, its value.
    for group, rows in enumerate(joined.chunk(kept)):
        own = heads // kept * head_size
        assert torch.equal(rows[:own], query[group * own : (group + 1) * own])
        assert torch.equal(rows[own : own + head_size], key[group * head_size : (group + 1) * head_size])
        assert torch.equal(rows[own + head_size :], value[group * head_size : (group + 1) * head_size])


def test_splitting_undoes_stacking() -> None:
    gate, up = torch.randn(5, 3), torch.randn(5, 3)
    joined = names.join([gate, up], "stack", CALM)
    assert torch.equal(joined, torch.cat([gate, up]))
    assert all(torch.equal(a, b) for a, b in zip(names.split(joined, "stack", CALM), (gate, up), strict=True))
    assert names.split(gate, "same", CALM) == [gate] and names.join([gate], "same", CALM) is gate


def test_weights_come_back_from_their_official_parts(calm: Calm) -> None:
    ours = dict(calm.named_parameters())
    weights = official_weights(calm.config)
    assert sorted(weight.name for weight in weights) == sorted(ours)
    for weight in weights:
        whole = ours[weight.name].detach()
        assert weight.shape() == whole.shape
        parts = weight.parts(whole, calm.config)
        assert {name: part.shape for name, part in parts.items()} == weight.shapes
        assert torch.equal(weight.of(list(parts.values()), calm.config), whole), weight.name
