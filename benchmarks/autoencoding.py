"""A training step of the published autoencoder, ours and with the logits of all tokens in memory."""

import functools

import torch
from torch import Tensor

from benchmarks import plain
from benchmarks.harness import demand_equal
from calm_megatron.config.schema import AutoencoderConfig, OptimizerConfig
from calm_megatron.losses.reconstruction import reconstruction_loss
from calm_megatron.model.autoencoder import Autoencoder, AutoencoderNoise
from calm_megatron.model.initialise import initialise
from calm_megatron.parallel.random_streams import RandomStreams
from calm_megatron.train.optimizer import build_optimizer

SIZES = {32000: 8192, 128256: 2048}
"""Tokens of a micro-batch by the size of the vocabulary."""


class Training:
    """One autoencoder with its batch; both steps work on it."""

    def __init__(self, vocabulary: int) -> None:
        self.config = AutoencoderConfig(vocab_size=vocabulary)
        self.model = Autoencoder(self.config)
        initialise(self.model, seed=1, std=0.02)
        self.optimizer = build_optimizer(self.model, OptimizerConfig())
        dice = torch.Generator().manual_seed(0)
        patches = SIZES[vocabulary] // self.config.patch_size
        self.ids_RK = torch.randint(vocabulary, (patches, self.config.patch_size), generator=dice)
        streams = RandomStreams(3, torch.device("cpu"))
        self.noise = AutoencoderNoise.draw(self.config, streams, 0, [0], patches)

    def our_loss(self) -> Tensor:
        """Forward of ours."""
        return self.model(self.ids_RK, self.noise).loss  # type: ignore[no-any-return]

    def plain_loss(self) -> Tensor:
        """The same forward with a plain end."""
        config, noise, model = self.config, self.noise, self.model
        mean_RZ, log_std_RZ = model.encoder(self.ids_RK * (noise.token_uniform_RK > config.dropout))
        latent_RZ = mean_RZ + noise.latent_normal_RZ * log_std_RZ.exp()
        latent_RZ = latent_RZ * (noise.latent_uniform_RZ >= config.dropout) / (1 - config.dropout)
        cross_entropy = plain.autoencoder_loss(model, latent_RZ, self.ids_RK)
        return reconstruction_loss(
            cross_entropy, config.patch_size, mean_RZ, log_std_RZ, config.kl_weight, config.kl_clamp
        ).loss

    def our_step(self) -> None:
        """Forward, backward, AdamW."""
        self._step(self.our_loss())

    def plain_step(self) -> None:
        """The same from all logits."""
        self._step(self.plain_loss())

    def _step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def demand_same(self) -> None:
        """Stop unless loss and gradients are the same."""
        weights = list(self.model.parameters())
        ours, theirs = self.our_loss(), self.plain_loss()
        demand_equal("loss", ours.detach(), theirs.detach(), 1e-5)
        for mine, other in zip(torch.autograd.grad(ours, weights), torch.autograd.grad(theirs, weights), strict=True):
            demand_equal("gradient", mine, other)


@functools.cache
def made(vocabulary: int) -> Training:
    """A training, made once in a process."""
    return Training(vocabulary)


def step(vocabulary: int, ours: bool) -> None:
    """One step of either kind."""
    training = made(vocabulary)
    (training.our_step if ours else training.plain_step)()
