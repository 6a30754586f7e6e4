"""Noise is a function of (seed, purpose, step, sequence) and of nothing else, and has the laws it should have."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from calm_megatron.parallel.random_streams import RandomStreams, _twister, initial_normal, key

CPU = torch.device("cpu")
KINDS = ("uniform", "normal")


def draw(
    kind: str, *sequences: int, seed: int = 1, purpose: str = "p", step: int = 0, shape: tuple[int, ...] = (5, 3)
) -> Tensor:
    noise: Tensor = getattr(RandomStreams(seed, CPU), kind)(purpose, step, sequences, shape)
    return noise


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_has_its_noise_in_any_batch(kind: str) -> None:
    together = draw(kind, 4, 9, 2)
    assert together.shape == (3, 5, 3) and together.dtype == torch.float32
    assert torch.equal(draw(kind, 2, 4, 9), together[[2, 0, 1]])
    for row, sequence in enumerate((4, 9, 2)):
        assert torch.equal(draw(kind, sequence)[0], together[row])


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_without_sequences_draws_nothing(kind: str, device: str) -> None:
    assert getattr(RandomStreams(1, torch.device(device)), kind)("p", 0, [], (5, 3)).shape == (0, 5, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_drawing_again_gives_the_same(kind: str) -> None:
    streams = RandomStreams(1, CPU)
    first = getattr(streams, kind)("p", 0, [3], (4,))
    getattr(streams, kind)("other", 7, [1, 2], (4,))
    torch.manual_seed(99)
    assert torch.equal(getattr(streams, kind)("p", 0, [3], (4,)), first)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [{"seed": 2}, {"purpose": "q"}, {"step": 1}])
def test_each_part_of_the_key_changes_every_number(kind: str, change: dict[str, int | str]) -> None:
    assert not (draw(kind, 0) == draw(kind, 0, **change)).any()  # type: ignore[arg-type]


def test_more_of_a_stream_begins_like_less_of_it() -> None:
    """So that a rank may draw a whole axis and take its part."""
    assert torch.equal(draw("normal", 3, shape=(10, 4))[:, :6], draw("normal", 3, shape=(6, 4)))


def test_no_sequences_give_no_rows() -> None:
    assert draw("normal").shape == (0, 5, 3)


def test_numbers_that_must_not_change() -> None:
    """A run that is resumed with a newer version goes on with the same noise."""
    uniform = draw("uniform", 7, seed=1234, purpose="token dropout", step=3, shape=(3,))
    normal = draw("normal", 7, seed=1234, purpose="token dropout", step=3, shape=(3,))
    weight = initial_normal(1234, "final_norm.weight", (3,))
    torch.testing.assert_close(uniform, torch.tensor([[0.9452774, 0.6160837, 0.707737]]), rtol=0, atol=1e-7)
    torch.testing.assert_close(normal, torch.tensor([[1.2628344, -0.0510504, 1.0815341]]), rtol=0, atol=1e-6)
    torch.testing.assert_close(weight, torch.tensor([0.7668322, 0.6653736, 2.5783596]), rtol=0, atol=1e-6)


def moments(sample: Tensor, orders: int = 4) -> list[float]:
    return [float(sample.double().pow(order).mean()) for order in range(1, orders + 1)]


def test_uniform_numbers_are_uniform() -> None:
    sample = draw("uniform", *range(50), shape=(4000,)).flatten()
    assert float(sample.min()) >= 0.0 and float(sample.max()) < 1.0
    error = 4 / math.sqrt(len(sample))
    assert moments(sample) == pytest.approx([1 / 2, 1 / 3, 1 / 4, 1 / 5], abs=error * 0.3)
    counts = torch.histc(sample, bins=20, min=0, max=1).double() / len(sample)
    assert float((counts - 0.05).abs().max()) < error * math.sqrt(0.05)


def test_normal_numbers_are_normal() -> None:
    sample = draw("normal", *range(50), shape=(4000,)).flatten()
    error = 4 / math.sqrt(len(sample))
    for moment, expected, spread in zip(moments(sample), (0, 1, 0, 3), (1, 2**0.5, 15**0.5, 96**0.5), strict=True):
        assert moment == pytest.approx(expected, abs=error * spread)
    for bound, share in ((1.0, 0.158655), (2.0, 0.022750), (3.0, 0.001350)):
        for tail in (sample > bound, sample < -bound):
            assert float(tail.double().mean()) == pytest.approx(share, abs=error * math.sqrt(share))


@pytest.mark.parametrize("kind", KINDS)
def test_streams_are_not_correlated(kind: str) -> None:
    """Neighbouring seeds, steps, sequences and purposes, all against each other, also shifted by one."""
    count = 20_000
    settings = itertools.product((1, 2), ("head", "target"), (0, 1), (0, 1))
    streams = [
        draw(kind, sequence, seed=seed, purpose=purpose, step=step, shape=(count,))[0]
        for seed, purpose, step, sequence in settings
    ]
    rows = torch.stack(streams + [stream.roll(1) for stream in streams])
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    assert float(correlation.abs().max()) < 5 / math.sqrt(count)


def test_keys_of_many_parts_differ() -> None:
    keys = {key(seed, "p", step, sequence) for seed in range(5) for step in range(50) for sequence in range(50)}
    assert len(keys) == 5 * 50 * 50
    assert key(1, 23) != key(12, 3)
    assert all(0 <= value < 2**128 for value in keys)


def test_an_initial_weight_depends_on_seed_and_name() -> None:
    weight = initial_normal(1, "a.weight", (20, 30))
    assert weight.shape == (20, 30)
    assert torch.equal(weight, initial_normal(1, "a.weight", (20, 30)))
    assert not torch.equal(weight, initial_normal(2, "a.weight", (20, 30)))
    assert not torch.equal(weight, initial_normal(1, "b.weight", (20, 30)))
    assert float(weight.std()) == pytest.approx(1.0, abs=0.15)


def test_blocks_are_the_numbers_of_one_draw_wherever_they_are_cut() -> None:
    streams = RandomStreams(1, CPU)
    whole = streams.normal("p", 2, [7], (40, 33, 129))[0]
    for lengths in ((40,), (17, 17, 6), (1,) * 40):
        blocks = streams.normal_blocks("p", 2, 7, [(length, 33, 129) for length in lengths])
        assert torch.equal(torch.cat(list(blocks)), whole)


def test_a_stream_of_normal_numbers_has_a_whole_state_of_its_own() -> None:
    """It is numpy's Mersenne Twister, in the state that the key gives."""
    words = np.random.SFC64(77).random_raw(312).view(np.uint32)
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    drawn = torch.empty(2000, dtype=torch.int32).random_(generator=_twister(77))
    assert drawn.tolist() == [int(word) % 2**31 for word in twister.random_raw(2000)]
