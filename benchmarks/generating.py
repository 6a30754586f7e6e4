"""Generation at T = 1/2 from pools of 200, ours and by the plain algorithm, with the same random numbers.

The weights are random, so samples differ early. How many of a pool begin alike decides what can be left out; `decoded`
counts it; the surer a model is, the less is saved.
"""

import functools
import random

import torch
from torch import Tensor

from benchmarks import plain
from benchmarks.training import BASELINE, NOISE_SIZE, Training
from calm_megatron.generate.decode import generate
from calm_megatron.generate.options import GenerationOptions
from calm_megatron.generate.pool import UNDECODED, DecodedPool

BATCH, POOL, NEW_TOKENS, PROMPT = 4, 200, 32, 64
OPTIONS = GenerationOptions(max_new_tokens=NEW_TOKENS, temperature=0.5, num_samples=POOL)
NEVER = 0
"""Stands for the end of document: texts of equal length are compared."""


class Generating:
    """A model with its prompts."""

    def __init__(self) -> None:
        training = Training(BASELINE)
        self.model, self.frozen = training.model.eval(), training.frozen
        self.weights = plain.official_weights(self.model)
        self.prompts_BT = training.ids_BT[0, : BATCH * PROMPT].view(BATCH, PROMPT).clamp(min=1)

    @torch.no_grad()
    def ours(self) -> None:
        """Continue all prompts."""
        generate(self.model, self.prompts_BT.tolist(), OPTIONS, eod_id=NEVER, pad_id=NEVER)

    @torch.no_grad()
    def plain(self) -> None:
        """The published way: a cache, all logits of all samples, counting in Python."""
        config, dice = self.model.config, random.Random(0)
        cache = self.model.new_cache(BATCH, (PROMPT + NEW_TOKENS) // config.patch_size)
        feed_BT = self.prompts_BT
        for _ in range(NEW_TOKENS // config.patch_size):
            hidden_BH = self.model.hidden_states(feed_BT, cache=cache)[:, -1]
            hidden_RH = hidden_BH.repeat_interleave(POOL, dim=0)
            noise_1Rn = torch.rand(1, BATCH * POOL, NOISE_SIZE) - 0.5
            latent_RZ = plain.samples(self.weights, len(self.model.head.blocks), hidden_RH, noise_1Rn)[0]
            patches_BNK = self.frozen.logits(latent_RZ).argmax(dim=-1).view(BATCH, POOL, -1)
            feed_BT = torch.tensor(plain.chosen_patches(patches_BNK, dice))

    @torch.no_grad()
    def decoded(self) -> float:
        """Share of the tokens of the pools behind the prompts that ours decodes."""
        hidden_BH = self.model.hidden_states(self.prompts_BT)[:, -1]
        noise_NBn = torch.rand(POOL, BATCH, NOISE_SIZE, generator=torch.Generator().manual_seed(1)) - 0.5
        latent_NBZ = self.model.head.latents(hidden_BH, noise_NBn)  # type: ignore[operator]
        pool = DecodedPool(self.frozen, latent_NBZ.transpose(0, 1))
        self._demand_same(pool, latent_NBZ)
        return (pool.tokens_RNK != UNDECODED).double().mean().item()

    def _demand_same(self, pool: DecodedPool, latent_NBZ: Tensor) -> None:
        """Stop unless what is decoded is what all logits say."""
        whole_RNK, decoded_RNK = self.frozen.tokens(latent_NBZ.transpose(0, 1)), pool.tokens_RNK != UNDECODED
        if not torch.equal(whole_RNK[decoded_RNK], pool.tokens_RNK[decoded_RNK]):
            raise AssertionError("the pool holds other tokens than the largest logits")


@functools.cache
def made() -> Generating:
    """A model, made once in a process."""
    return Generating()
