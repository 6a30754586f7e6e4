"""The planner's layers against the built models: names, parameters, and the FLOPs that torch counts in a step."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from calm_megatron.config.schema import ArConfig, AutoencoderConfig, CalmConfig, RunConfig
from calm_megatron.losses import energy_score
from calm_megatron.model.ar_baseline import ArBaseline
from calm_megatron.model.autoencoder import Autoencoder, FrozenAutoencoder
from calm_megatron.model.calm import Calm
from calm_megatron.model.initialise import initialise
from calm_megatron.model.noise import KeyedNoise
from calm_megatron.parallel.grid import Grid
from calm_megatron.parallel.random_streams import RandomStreams
from calm_megatron.plan.layers import LayerCost, layer_costs, layer_names

AUTOENCODER = AutoencoderConfig(
    vocab_size=77, patch_size=2, latent_size=6, hidden_size=10, ffn_hidden_size=14, num_encoder_layers=4
)
BATCH = 2
Run = Callable[..., RunConfig]

sources = pytest.mark.parametrize("source", ["tokens", "latents"])
heads = pytest.mark.parametrize("head", ["energy", "diffusion", "flow"])
groups = pytest.mark.parametrize("groups", ["null", "2"])
recomputations = pytest.mark.parametrize("recompute", ["none", "full"])


def calm(config: RunConfig) -> Calm:
    assert isinstance(config.model, CalmConfig)
    autoencoder = FrozenAutoencoder(Autoencoder(AUTOENCODER))
    model = Calm(config.model, autoencoder, recompute=config.train.recompute_granularity == "full")
    model.initialise(1)
    return model


def baseline(config: RunConfig) -> ArBaseline:
    assert isinstance(config.model, ArConfig)
    model = ArBaseline(config.model, recompute=config.train.recompute_granularity == "full")
    model.initialise(1)
    return model


def parameters_by_layer(model: nn.Module, names: tuple[str, ...]) -> dict[str, int]:
    """Parameters of the model under each name, in the order of the names; none may be left over or counted twice."""
    found = dict.fromkeys(names, 0)
    for name, weight in model.named_parameters():
        (layer,) = [layer for layer in names if name.startswith(f"{layer}.")]
        found[layer] += weight.numel()
    return found


@heads
@sources
@groups
def test_calms_layers_hold_what_is_built(head: str, source: str, groups: str, small_calm: Run, grid: Grid) -> None:
    config = small_calm(f"model.input={source}", f"model.num_query_groups={groups}", head=head)
    counted = {cost.name: cost.parameters for cost in layer_costs(config)}
    assert counted == parameters_by_layer(calm(config), layer_names(config.model))


@groups
def test_the_baselines_layers_hold_what_is_built(groups: str, small_ar: Run, grid: Grid) -> None:
    config = small_ar(f"model.num_query_groups={groups}")
    counted = {cost.name: cost.parameters for cost in layer_costs(config)}
    assert counted == parameters_by_layer(baseline(config), layer_names(config.model))


def test_layers_come_in_the_order_of_computation(small_calm: Run, small_ar: Run) -> None:
    backbone = ("layers.0", "layers.1", "layers.2", "final_norm")
    head = ("head.input", "head.blocks.0", "head.blocks.1", "head.output")
    assert layer_names(small_calm().model) == ("patch_embedding", *backbone, *head)
    assert layer_names(small_ar().model) == ("embedding", *backbone, "output")


def test_an_autoencoder_has_no_pipeline(preset: Run) -> None:
    with pytest.raises(TypeError, match="no pipeline"):
        layer_costs(preset("ae_75m"))


def counted_flops(compute: Callable[[], torch.Tensor]) -> tuple[int, int]:
    """FLOPs that torch counts in the forward pass and in the step.

    It counts nothing for its CPU kernels of attention, so attention is made of matrix products here.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss = compute()
        forward = counter.get_total_flops()
        loss.backward()  # type: ignore[no-untyped-call]
        return forward, counter.get_total_flops()


def planned_flops(config: RunConfig, costs: tuple[LayerCost, ...]) -> tuple[int, int]:
    """The same by the planner, with the half of attention that is masked: by matrix products it is computed, too."""
    model = config.model
    assert isinstance(model, CalmConfig | ArConfig)
    positions = config.data.seq_length // model.patch_size - 1
    masked = 2 * 2 * model.hidden_size * (positions * (positions - 1) // 2) * model.num_layers
    times = 4 if config.train.recompute_granularity == "full" else 3
    forward, step = sum(cost.forward_flops for cost in costs), sum(cost.step_flops for cost in costs)
    return BATCH * (forward + masked), BATCH * (step + times * masked)


@heads
@sources
@groups
@recomputations
def test_flops_of_calm_are_those_that_torch_counts(
    head: str, source: str, groups: str, recompute: str, small_calm: Run, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Samples that lie near to each other, as in a new model, need fewer products.
    monkeypatch.setattr(energy_score, "_NEAR", 0.0)
    config = small_calm(
        f"model.input={source}",
        f"model.num_query_groups={groups}",
        f"train.recompute_granularity={recompute}",
        head=head,
    )
    model = calm(config)
    initialise(model.head, seed=1, std=1.0)
    noise = KeyedNoise(RandomStreams(1, torch.device("cpu")), "training", 0, range(BATCH), 6)
    ids_BT = torch.randint(77, (BATCH, 14))
    assert counted_flops(lambda: model(ids_BT, noise).loss) == planned_flops(config, layer_costs(config, AUTOENCODER))


@groups
@recomputations
def test_flops_of_the_baseline_are_those_that_torch_counts(
    groups: str, recompute: str, small_ar: Run, grid: Grid
) -> None:
    config = small_ar(f"model.num_query_groups={groups}", f"train.recompute_granularity={recompute}")
    model, ids_BT = baseline(config), torch.randint(77, (BATCH, 14))
    assert counted_flops(lambda: model(ids_BT).loss) == planned_flops(config, layer_costs(config))


@pytest.mark.parametrize(("head", "targets"), [("energy", "head.output"), ("flow", "head.input")])
def test_the_encoder_counts_where_it_works(head: str, targets: str, small_calm: Run) -> None:
    for source, where in (("tokens", {targets}), ("latents", {targets, "patch_embedding"})):
        config = small_calm(f"model.input={source}", head=head)
        pairs = list(zip(layer_costs(config), layer_costs(config, AUTOENCODER), strict=True))
        more = {without.name: given.step_flops - without.step_flops for without, given in pairs}
        assert {name for name, flops in more.items() if flops} == where
        assert len({flops for flops in more.values() if flops}) == 1
        assert all(without.parameters == given.parameters for without, given in pairs)
