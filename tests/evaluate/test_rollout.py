"""Roll-outs: the official figures for K = 2, one place after the other without a cache, and unbiasedness."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from calm_megatron.config.schema import ArConfig
from calm_megatron.evaluate.rollout import choose_places, roll_out, steps_of
from calm_megatron.model.ar_baseline import ArBaseline
from calm_megatron.model.initialise import initialise
from calm_megatron.model.softmax import tokens_of
from calm_megatron.parallel.grid import Grid
from calm_megatron.parallel.random_streams import RandomStreams
from tests.official import load_official_calm

STREAMS = RandomStreams(3, torch.device("cpu"))


@torch.no_grad()
def test_the_official_figures_of_patches_of_two(golden: Callable[[str], Path], grid: Grid) -> None:
    model = load_official_calm(golden("energy_k2")).eval()
    tensors = load_file(golden("energy_k2") / "io.safetensors")
    ids_BT, step_noise = tensors["input_ids"], tensors["brier_step_noise"].squeeze(3)
    B, P = len(ids_BT), ids_BT.shape[1] // 2
    places_BW = choose_places(STREAMS, range(B), P, 2, limit=100)
    W = places_BW.shape[1]
    forced_noise = tensors["eval_head_noise"][:2].unflatten(1, (B, P - 1))
    # The official code draws a second step only where the two draws of the first agree in some row of the batch.
    first, second = tensors["eval_predictions"]
    calls = (first == second).all(dim=-1).any(dim=0)[:W].nonzero().squeeze(1)
    assert len(calls) == len(step_noise)
    rolled_noise = torch.zeros(2, B, W, step_noise.shape[-1])
    rolled_noise[:, :, calls] = step_noise.permute(1, 2, 0, 3)

    def draw(hidden_RH: Tensor, step: int) -> Tensor:
        along = places_BW.unsqueeze(-1) + torch.arange(2)
        noise = forced_noise[:, torch.arange(B)[:, None, None], along] if step == 0 else rolled_noise
        return model.autoencoder.tokens(model.head.latents(hidden_RH, noise.flatten(1, -2)))

    rolled = roll_out(model, model.config, ids_BT, None, places_BW, draw, eod_id=-1, patch_size=2)
    brier = rolled.terms().mean(dim=(0, 1))
    expected = torch.stack([tensors[f"brier{n}"] for n in (1, 2, 3, 4)]).float()
    torch.testing.assert_close(brier, expected, rtol=0, atol=1e-5)


V, EOD = 5, 4


@pytest.fixture(scope="module")
def baseline(grid: Grid) -> ArBaseline:
    """A vocabulary so small that all runs of four tokens can be gone through."""
    config = ArConfig(
        vocab_size=V, num_layers=2, hidden_size=32, ffn_hidden_size=64, num_attention_heads=4, num_query_groups=2
    )
    model = ArBaseline(config)
    initialise(model, seed=4, std=0.15)
    return model.eval()


def packed(ids_BT: Tensor) -> Tensor:
    """Documents of tokens: an end of document ends one."""
    ends = (ids_BT == EOD).cumsum(dim=1)
    return torch.cat([torch.zeros_like(ends[:, :1]), ends[:, :-1]], dim=1)


@torch.no_grad()
def run_law(model: ArBaseline, context: list[int], masked: bool) -> Tensor:
    """Probability of every run of four tokens behind a context, (V, V, V, V), by reading each run in full."""
    runs = torch.tensor(list(itertools.product(range(V), repeat=4)))
    ids = torch.cat([torch.tensor(context).expand(len(runs), -1), runs], dim=1)
    hidden = model.hidden_states(ids, packed(ids) if masked else None)[:, len(context) - 1 : -1]
    chances = model.logits(hidden.flatten(0, 1)).double().softmax(dim=-1).view(len(runs), 4, V)
    return chances.gather(2, runs.unsqueeze(-1)).squeeze(-1).prod(dim=1).view(V, V, V, V)


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_tokens_are_rolled_out_as_one_place_after_the_other(baseline: ArBaseline, masked: bool) -> None:
    """Batched and cached, each drawn token is what its number makes of the law behind the text and the earlier ones."""
    ids_BT = torch.randint(0, V, (3, 14), generator=torch.Generator().manual_seed(0))
    documents_BT = packed(ids_BT) if masked else None
    places_BW = choose_places(STREAMS, range(3), 14, 1, limit=100)
    B, W = places_BW.shape
    numbers = [
        torch.rand(B, W * rows, 2, generator=torch.Generator().manual_seed(step))
        for step, rows in enumerate((4, 1, 1, 1))
    ]

    def draw(hidden_RH: Tensor, step: int) -> Tensor:
        return tokens_of(baseline.logits(hidden_RH), numbers[step].flatten(0, 1)).T.unsqueeze(-1)

    def next_tokens(context: Tensor, uniform_2: Tensor) -> list[int]:
        ids = context[None]
        hidden_1H = baseline.hidden_states(ids, packed(ids) if masked else None)[:, -1]
        return tokens_of(baseline.logits(hidden_1H), uniform_2[None])[0].tolist()

    rolled = roll_out(baseline, baseline.config, ids_BT, documents_BT, places_BW, draw, EOD, patch_size=1)
    ended = 0
    for b, w in itertools.product(range(B), range(W)):
        place = int(places_BW[b, w])
        assert rolled.target_BWO[b, w].tolist() == ids_BT[b, place + 1 : place + 5].tolist()
        for step in range(4):
            forced = next_tokens(ids_BT[b, : place + 1 + step], numbers[0].view(B, W, 4, 2)[b, w, step])
            assert rolled.forced_2BWO[:, b, w, step].tolist() == forced
        drawn = rolled.rolled_2BWO[:, b, w]
        assert drawn[:, 0].tolist() == rolled.forced_2BWO[:, b, w, 0].tolist()
        for step in range(1, 4):
            context = torch.cat([ids_BT[b, : place + 1], drawn[0, :step]])
            assert drawn[:, step].tolist() == next_tokens(context, numbers[step][b, w])
        ended += EOD in drawn[0, :3].tolist()
    assert ended > 3


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_every_order_is_unbiased(baseline: ArBaseline, masked: bool) -> None:
    """Against Brier-n from the probabilities of all runs of four tokens."""
    ids_BT = torch.tensor([[0, 1, 2, 4, 3, 1, 0, 4]])
    documents_BT = packed(ids_BT) if masked else None
    times = 20_000
    generator = torch.Generator().manual_seed(5)

    def draw(hidden_RH: Tensor, step: int) -> Tensor:
        uniform_R2 = torch.rand(len(hidden_RH), 2, generator=generator)
        return tokens_of(baseline.logits(hidden_RH), uniform_R2).T.unsqueeze(-1)

    place = 2
    places_BW = torch.full((1, times), place)
    rows = [
        roll_out(baseline, baseline.config, ids_BT, documents_BT, part, draw, EOD, patch_size=1).terms()
        for part in places_BW.split(500, dim=1)
    ]
    terms = torch.cat(rows, dim=1)[0].double()
    law = run_law(baseline, ids_BT[0, : place + 1].tolist(), masked)
    for n in range(1, 5):
        of_run = law.sum(dim=tuple(range(n, 4))) if n < 4 else law
        gold = of_run[tuple(ids_BT[0, place + 1 : place + 1 + n].tolist())]
        truth = float(2 * gold - of_run.square().sum())
        error = float(terms[:, n - 1].std()) / times**0.5
        assert float(terms[:, n - 1].mean()) == pytest.approx(truth, abs=4 * error)


@pytest.mark.parametrize(("patch_size", "steps"), [(1, 4), (2, 2), (3, 2), (4, 1), (8, 1)])
def test_steps_hold_four_tokens(patch_size: int, steps: int) -> None:
    assert steps_of(patch_size) == steps


def test_places_are_all_or_an_even_share() -> None:
    assert choose_places(STREAMS, [7, 8], 8, 2, limit=5).tolist() == [[0, 1, 2, 3, 4]] * 2
    places = choose_places(STREAMS, range(4000), 8, 2, limit=3)
    assert places.shape == (4000, 3) and int(places.min()) == 0 and int(places.max()) == 4
    share = places.flatten().bincount() / places.numel()
    torch.testing.assert_close(share, torch.full((5,), 0.2), rtol=0, atol=4 * (0.16 / 12_000) ** 0.5)
    assert torch.equal(choose_places(STREAMS, [2], 8, 2, limit=3)[0], places[2])
