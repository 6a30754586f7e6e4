"""Keyed randomness."""

import itertools

import torch

from calm_megatron.generate.draws import KeyedDraws


def test_every_part_of_the_key_counts() -> None:
    draws = {
        (seed, prompt, step, attempt): KeyedDraws(seed, 16).head_noise(prompt, step, attempt, 3)
        for seed, prompt, step, attempt in itertools.product(range(2), repeat=4)
    }
    for one, other in itertools.combinations(draws.values(), 2):
        assert not torch.equal(one, other)
    assert torch.equal(draws[1, 0, 1, 0], KeyedDraws(1, 16, streams=[0]).head_noise(0, 1, 0, 3))
    assert torch.equal(draws[1, 1, 1, 0], KeyedDraws(1, 16, streams=[1]).head_noise(0, 1, 0, 3))


def test_a_large_pool_begins_with_the_small_one() -> None:
    draws = KeyedDraws(0, 16)
    assert torch.equal(draws.head_noise(0, 0, 0, 100)[:7], draws.head_noise(0, 0, 0, 7))


def test_noise_is_uniform_around_zero() -> None:
    noise = KeyedDraws(0, 64).head_noise(0, 0, 0, 10_000)
    assert noise.dtype == torch.float32
    assert -0.5 <= float(noise.min()) < -0.4999 and 0.4999 < float(noise.max()) < 0.5
    counts = torch.histc(noise, 10, -0.5, 0.5)
    assert float((counts - 64_000).abs().max()) < 4 * (64_000 * 0.9) ** 0.5


def test_choices_are_their_own_stream() -> None:
    draws = KeyedDraws(0, 16)
    choices = [draws.choice(prompt, step) for prompt in range(100) for step in range(10)]
    assert len(set(choices)) == 1000
    assert all(0 <= choice < 1 for choice in choices)
    assert abs(sum(choices) / 1000 - 0.5) < 4 * (1 / 12 / 1000) ** 0.5
