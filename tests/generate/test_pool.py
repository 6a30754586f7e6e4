"""Pools decoded as far as needed: the choice of whole pools, number for number, and the law of the plain algorithm."""

import math
import random
from collections import Counter

import pytest
import torch
from torch import Tensor

from calm_megatron.generate.draws import KeyedDraws, NoiseOfPrompts
from calm_megatron.generate.options import Exponent
from calm_megatron.generate.pool import UNDECODED, DecodedPool
from calm_megatron.generate.temperature import choose, select, temperature_weights
from calm_megatron.model.calm import Calm

ROWS, N = 60, 30


@torch.no_grad()
def latents(model: Calm, rows: int, seed: int) -> Tensor:
    """N samples (rows, N, Z) after one and the same context."""
    hidden_1H = model.hidden_states(torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]]))[:, -1]
    noise = NoiseOfPrompts(KeyedDraws(seed), range(rows), 0, 0)
    return model.head.sample(hidden_1H.expand(rows, -1), noise, N).transpose(0, 1)


@pytest.mark.parametrize("exponent", [Exponent(2), Exponent(3), Exponent(1, 0.5), Exponent(2, 0.3), Exponent(9)])
def test_the_choice_is_that_of_the_whole_pool(model: Calm, exponent: Exponent) -> None:
    latent_RNZ, uniform_R = latents(model, ROWS, 1), torch.rand(ROWS, dtype=torch.float64)
    whole_RNK, pool = model.autoencoder.tokens(latent_RNZ), DecodedPool(model.autoencoder, latent_RNZ)
    assert torch.equal(temperature_weights(pool.tokens_RNK, exponent), temperature_weights(whole_RNK, exponent))
    index_R = choose(pool.tokens_RNK, exponent, uniform_R)
    assert torch.equal(pool.whole(index_R), select(whole_RNK, exponent, uniform_R))


def test_only_what_tells_patches_apart_is_decoded(model: Calm) -> None:
    latent_RNZ = latents(model, ROWS, 2)
    whole_RNK, pool = model.autoencoder.tokens(latent_RNZ), DecodedPool(model.autoencoder, latent_RNZ)
    decoded_RNK = pool.tokens_RNK != UNDECODED
    assert torch.equal(pool.tokens_RNK[decoded_RNK], whole_RNK[decoded_RNK])
    for row in range(ROWS):
        patches = [tuple(patch) for patch in whole_RNK[row].tolist()]
        for place in range(1, whole_RNK.shape[-1]):
            beginnings = Counter(patch[:place] for patch in patches)
            expected = [beginnings[patch[:place]] > 1 for patch in patches]
            assert decoded_RNK[row, :, place].tolist() == expected
    assert 0.2 < decoded_RNK[..., 1:].double().mean() < 0.95, "the model must draw both kinds of patches"


def test_a_pool_of_one_is_decoded_when_it_is_chosen(model: Calm) -> None:
    latent_RNZ = latents(model, ROWS, 3)[:, :1]
    pool = DecodedPool(model.autoencoder, latent_RNZ)
    assert (pool.tokens_RNK[..., 1:] == UNDECODED).all()
    index_R = choose(pool.tokens_RNK, Exponent(), torch.zeros(ROWS, dtype=torch.float64))
    assert torch.equal(pool.whole(index_R), model.autoencoder.tokens(latent_RNZ)[:, 0])


def test_frequencies_are_those_of_the_plain_algorithm(model: Calm) -> None:
    """Chi-square test of two samples: ours against counting whole patches, on other noise and by other dice."""
    rows = 1500
    latent_RNZ = latents(model, rows, 4)
    pool = DecodedPool(model.autoencoder, latent_RNZ)
    uniform_R = torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    ours = Counter(map(tuple, pool.whole(choose(pool.tokens_RNK, Exponent(2), uniform_R)).tolist()))
    dice, plain = random.Random(6), Counter[tuple[int, ...]]()
    for patches in model.autoencoder.tokens(latents(model, rows, 7)).tolist():
        counts = Counter(map(tuple, patches))
        twice = {patch: math.comb(count, 2) for patch, count in counts.items() if count > 1} or dict(counts)
        plain[dice.choices(list(twice), weights=list(twice.values()))[0]] += 1
    frequent = [patch for patch in ours | plain if ours[patch] + plain[patch] >= 20]
    pairs = [(ours[patch], plain[patch]) for patch in frequent]
    pairs.append((rows - sum(a for a, _ in pairs), rows - sum(b for _, b in pairs)))
    chi_square = sum((a - b) ** 2 / (a + b) for a, b in pairs if a + b)
    freedom = len(pairs) - 1
    assert freedom >= 5
    # Wilson and Hilferty: the cube root of a chi-square over its degrees of freedom is nearly normal; 1 in 10,000.
    normal = ((chi_square / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert normal < 3.72
