"""Whole training steps of CALM, ours and made of plain parts: the same weights, sizes and optimizer settings.

A step is forward, backward, clipping and AdamW, with the frozen encoder's targets and all random numbers. Ours is the
model as it trains, on one rank and without DeepSpeed around it; the plain one runs on `benchmarks.plain`.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks import plain
from benchmarks.harness import demand_equal
from calm_megatron.config.schema import AutoencoderConfig, CalmConfig, EnergyHeadConfig, OptimizerConfig
from calm_megatron.model.autoencoder import Autoencoder, FrozenAutoencoder
from calm_megatron.model.calm import Calm, CalmTerms
from calm_megatron.model.initialise import initialise
from calm_megatron.model.noise import GivenNoise, KeyedNoise
from calm_megatron.parallel.grid import start
from calm_megatron.parallel.random_streams import RandomStreams
from calm_megatron.train.optimizer import Skippable, build_optimizer

N, M, Z, K, NOISE_SIZE, BLOCKS = 8, 100, 128, 4, 64, 4
CLIP = 1.0
OPTIMIZER = OptimizerConfig()


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and its batch."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    vocabulary: int
    sequences: int
    tokens: int
    """Of a sequence."""

    @property
    def model(self) -> CalmConfig:
        """The config of CALM."""
        return CalmConfig(
            autoencoder="made here",
            vocab_size=self.vocabulary,
            patch_size=K,
            latent_size=Z,
            num_layers=self.layers,
            hidden_size=self.hidden,
            ffn_hidden_size=self.ffn,
            num_attention_heads=self.heads,
            head=EnergyHeadConfig(num_layers=BLOCKS, noise_size=NOISE_SIZE, num_samples=N, num_target_samples=M),
        )

    @property
    def autoencoder(self) -> AutoencoderConfig:
        """The config of its autoencoder, with the published sizes."""
        return AutoencoderConfig(vocab_size=self.vocabulary, patch_size=K, latent_size=Z)


BASELINE = Shape(hidden=512, ffn=1376, layers=8, heads=8, vocabulary=32000, sequences=2, tokens=2048)
"""The shape at which the official code was measured."""


class Training:
    """Ours and the plain one, ready to step."""

    def __init__(self, shape: Shape) -> None:
        start()
        autoencoder = Autoencoder(shape.autoencoder)
        initialise(autoencoder, seed=1, std=0.02)
        self.shape, self.config = shape, shape.model
        self.frozen = FrozenAutoencoder(autoencoder)
        self.model = Calm(self.config, self.frozen)
        initialise(self.model, seed=2, std=0.02)
        dice = torch.Generator().manual_seed(0)
        self.ids_BT = torch.randint(shape.vocabulary, (shape.sequences, shape.tokens), generator=dice)
        self.streams = RandomStreams(3, torch.device("cpu"))

    @functools.cached_property
    def weights(self) -> dict[str, Tensor]:
        """The model's, with their official names."""
        return plain.official_weights(self.model)

    @functools.cached_property
    def optimizer(self) -> Skippable:
        """Ours."""
        return build_optimizer(self.model, OPTIMIZER)

    @functools.cached_property
    def plain_optimizer(self) -> torch.optim.AdamW:
        """torch's AdamW, as it is without further choice."""
        return torch.optim.AdamW(self.weights.values(), lr=OPTIMIZER.lr, weight_decay=OPTIMIZER.weight_decay)

    def our_loss(self) -> Tensor:
        """Forward of ours, on keyed noise."""
        patches = self.shape.tokens // K - 1
        terms = self.model(self.ids_BT, KeyedNoise(self.streams, "training", 0, range(len(self.ids_BT)), patches))
        assert isinstance(terms, CalmTerms)
        return terms.loss

    def plain_loss(self, head_NRn: Tensor, target_MRZ: Tensor) -> Tensor:
        """Forward of the plain one."""
        hidden_BPH = plain.hidden_states(self.weights, self.config, self.ids_BT)
        samples_NRZ = plain.samples(self.weights, BLOCKS, hidden_BPH[:, :-1].flatten(0, 1), head_NRn)
        posterior = self.frozen.encode(self.ids_BT[:, K:].reshape(-1, K))
        return -plain.energy_score(samples_NRZ, *posterior, target_MRZ).mean()

    def noise(self) -> tuple[Tensor, Tensor]:
        """Noise of the head and of the targets."""
        rows = len(self.ids_BT) * (self.shape.tokens // K - 1)
        return torch.rand(N, rows, NOISE_SIZE) - 0.5, torch.randn(M, rows, Z)

    def our_step(self) -> None:
        """One of ours."""
        self.optimizer.zero_grad()
        self.our_loss().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()

    def plain_step(self) -> None:
        """One of the plain ones."""
        self.plain_optimizer.zero_grad()
        self.plain_loss(*self.noise()).backward()
        nn.utils.clip_grad_norm_(self.weights.values(), CLIP)
        self.plain_optimizer.step()

    def demand_same(self) -> None:
        """Stop unless the losses are the same, given the same noise."""
        head_NRn, target_MRZ = self.noise()
        with torch.no_grad():
            terms = self.model(self.ids_BT, GivenNoise({"head": head_NRn + 0.5, "target": target_MRZ}))
            assert isinstance(terms, CalmTerms)
            demand_equal("loss", terms.loss, self.plain_loss(head_NRn, target_MRZ), 1e-5)


@functools.cache
def made(shape: Shape) -> Training:
    """A training, made once in a process."""
    return Training(shape)
