"""Keyed randomness."""

import itertools

import torch

from calm_megatron.generate.draws import KeyedDraws, NoiseOfPrompts


def test_every_part_of_the_key_counts() -> None:
    draws = {
        (seed, prompt, step, attempt): KeyedDraws(seed).uniform(prompt, step, attempt, "head", 3, 16)
        for seed, prompt, step, attempt in itertools.product(range(2), repeat=4)
    }
    for one, other in itertools.combinations(draws.values(), 2):
        assert not torch.equal(one, other)
    assert torch.equal(draws[1, 0, 1, 0], KeyedDraws(1, streams=[0]).uniform(0, 1, 0, "head", 3, 16))
    assert torch.equal(draws[1, 1, 1, 0], KeyedDraws(1, streams=[1]).uniform(0, 1, 0, "head", 3, 16))


def test_a_large_pool_begins_with_the_small_one() -> None:
    draws = KeyedDraws(0)
    for draw in (draws.uniform, draws.normal):
        assert torch.equal(draw(0, 0, 0, "head", 100, 16)[:7], draw(0, 0, 0, "head", 7, 16))


def test_noise_has_its_law() -> None:
    noise = KeyedDraws(0).uniform(0, 0, 0, "head", 10_000, 64)
    assert noise.dtype == torch.float32
    assert 0 <= float(noise.min()) < 1e-4 and 0.9999 < float(noise.max()) < 1
    counts = torch.histc(noise, 10, 0, 1)
    assert float((counts - 64_000).abs().max()) < 4 * (64_000 * 0.9) ** 0.5
    normal = KeyedDraws(0).normal(0, 0, 0, "start", 10_000, 64)
    assert normal.dtype == torch.float32
    assert abs(float(normal.mean())) < 4 / 800 and abs(float(normal.std()) - 1) < 0.005


def test_every_purpose_has_its_own_stream() -> None:
    draws = [KeyedDraws(0).normal(0, 0, 0, purpose, 1, 4) for purpose in ("head", "start", "step 1", "step 2")]
    for one, other in itertools.combinations(draws, 2):
        assert not torch.equal(one, other)


def test_rows_are_those_of_their_prompts() -> None:
    draws = KeyedDraws(0)
    both = NoiseOfPrompts(draws, [3, 5], step=1, attempt=2).normal("start", 7, 4)
    assert both.shape == (7, 2, 4)
    assert torch.equal(both[:, 1], draws.normal(5, 1, 2, "start", 7, 4))


def test_choices_are_their_own_stream() -> None:
    draws = KeyedDraws(0)
    choices = [draws.choice(prompt, step) for prompt in range(100) for step in range(10)]
    assert len(set(choices)) == 1000
    assert all(0 <= choice < 1 for choice in choices)
    assert abs(sum(choices) / 1000 - 0.5) < 4 * (1 / 12 / 1000) ** 0.5
