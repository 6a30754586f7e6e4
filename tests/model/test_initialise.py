"""Initial weights: a pure function of seed and name, with the official laws."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from calm_megatron.model.autoencoder import Autoencoder
from calm_megatron.model.calm import Calm
from calm_megatron.model.initialise import initialise


def test_a_weight_depends_on_seed_and_name_alone(build: Callable[..., Calm]) -> None:
    small, large = build(num_layers=1, num_query_groups=2), build(num_layers=3, num_query_groups=2)
    for model in (large, small):
        model.initialise(seed=9)
    shared = dict(small.named_parameters())
    torch.manual_seed(123)  # torch's own generator has no part in it
    for name, weight in large.named_parameters():
        if name in shared:
            assert torch.equal(weight, shared[name]), name
    assert not torch.equal(large.layers["0"].mlp.linear_fc2.weight, large.layers["1"].mlp.linear_fc2.weight)


def test_another_seed_gives_other_weights(build: Callable[..., Calm]) -> None:
    first, again, other = build(), build(), build()
    first.initialise(1)
    again.initialise(1)
    other.initialise(2)
    for (name, weight), same, different in zip(
        first.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(weight, same), name
        if weight.dim() > 1 and name != "head.output.linear_out.weight":
            assert not torch.equal(weight, different), name


def test_laws_of_the_weights(build: Callable[..., Calm]) -> None:
    model = build()
    model.initialise(seed=1)
    for name, weight in model.named_parameters():
        if name.startswith("head.output.linear_out") or name.endswith("bias"):
            assert weight.abs().max() == 0, name
        elif weight.dim() == 1:
            assert torch.equal(weight, torch.ones_like(weight)), name
        else:
            assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.15), name
            assert abs(float(weight.detach().mean())) < 0.02 * 5 / weight.numel() ** 0.5, name


def test_the_autoencoder_too(autoencoder: Autoencoder) -> None:
    initialise(autoencoder, seed=1, std=0.5)
    assert float(autoencoder.encoder.embed_tokens.weight.detach().std()) == pytest.approx(0.5, rel=0.1)
    assert autoencoder.decoder.expand_layer.bias.abs().max() == 0
    assert torch.equal(autoencoder.decoder.norm.weight, torch.ones(16))


def test_a_name_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no such parameters: \['wieght'\]"):
        initialise(nn.Linear(2, 2), seed=1, std=1.0, zero=("wieght",))


def test_parameters_are_counted_once(autoencoder: Autoencoder) -> None:
    names = [name for name, _ in autoencoder.named_parameters()]
    assert names.count("encoder.embed_tokens.weight") == 1 and not any("lm_head" in name for name in names)
