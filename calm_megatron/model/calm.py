"""CALM: from tokens to the hidden state of each patch, and from there to samples of the next one.

    ids (B, T) -> patch embedding -> Transformer over P patches -> hidden (B, P, H) -> head -> latents (N, R, Z)

Hidden state j predicts patch j + 1; the first patch of a sequence is never predicted. The frozen autoencoder gives the
targets; it is no part of the module tree.

A pipeline stage is the same model with some of its layers: what reaches it from the stage before comes as `received`,
and in place of the result it gives what goes to the next.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import AutoencoderConfig, CalmConfig
from calm_megatron.losses.energy_score import EnergyTerms, energy_score
from calm_megatron.model.attention import KVCache
from calm_megatron.model.autoencoder import FrozenAutoencoder
from calm_megatron.model.backbone import Backbone, transformer_config
from calm_megatron.model.heads.energy import EnergyHead
from calm_megatron.model.initialise import initialise
from calm_megatron.model.patch_embedding import PatchEmbedding
from calm_megatron.model.sharding import Sharding
from calm_megatron.parallel.random_streams import RandomStreams
from calm_megatron.parallel.tensor_ranks import TensorRanks


class CalmNoise(NamedTuple):
    """The randomness of one training step on R predicted patches."""

    head_uniform_NRn: Tensor
    """U[-0.5, 0.5) that the head turns into samples."""
    target_normal_MRZ: Tensor
    """N(0, 1) of the target samples."""


@dataclass(frozen=True)
class KeyedNoise:
    """The same, drawn from keyed streams when it is used: not every pipeline stage uses both."""

    config: CalmConfig
    streams: RandomStreams
    purpose: str
    step: int
    sequences: Sequence[int]
    patches: int
    """Predicted patches of each sequence; rows are in the order (sequence, patch)."""

    @property
    def head_uniform_NRn(self) -> Tensor:
        """U[-0.5, 0.5) that the head turns into samples."""
        shape = (self.patches, self.config.head.num_samples, self.config.head.noise_size)
        drawn = self.streams.uniform(f"{self.purpose} head", self.step, self.sequences, shape)
        return drawn.flatten(0, 1).transpose(0, 1) - 0.5

    @property
    def target_normal_MRZ(self) -> Tensor:
        """N(0, 1) of the target samples."""
        shape = (self.patches, self.config.head.num_target_samples, self.config.latent_size)
        drawn = self.streams.normal(f"{self.purpose} target", self.step, self.sequences, shape)
        return drawn.flatten(0, 1).transpose(0, 1)


class CalmTerms(NamedTuple):
    """Scalars of one micro-batch: means over its predicted patches."""

    loss: Tensor
    """The negative energy score."""
    spread: Tensor
    """Mean distance among the model's samples."""
    distance: Tensor
    """Mean distance of the model's samples to the targets."""

    def named(self) -> dict[str, Tensor]:
        """As they are logged."""
        return {
            "loss": self.loss,
            "energy/distance_samples": self.spread,
            "energy/distance_targets": self.distance,
        }


class Calm(Backbone):
    """The model and its training loss."""

    def __init__(
        self,
        config: CalmConfig,
        autoencoder: FrozenAutoencoder,
        *,
        dtype: torch.dtype = torch.float32,
        recompute: bool = False,
        ranks: TensorRanks | None = None,
        held: Collection[str] | None = None,
    ) -> None:
        check_autoencoder(config, autoencoder.config)
        ranks = ranks or TensorRanks()
        core = transformer_config(config, dtype, ranks)
        super().__init__(config, core, ranks, recompute, held)
        self.config = config
        self.sharding = Sharding(config, ranks.rank, ranks.size)
        self.autoencoder = autoencoder
        self.patch_embedding = PatchEmbedding(config, core, ranks) if self.holds("patch_embedding") else None
        self.head = EnergyHead(config, self.holds)
        for weight in self.head.parameters():
            ranks.sum_gradients(weight)
        self.to(dtype)

    def initialise(self, seed: int) -> None:
        """Draw the initial weights; the head's last layer and the pad token's row start at zero."""
        zero = ("head.output.linear_out.weight", "head.output.linear_out.bias")
        initialise(self, seed, self.config.init_method_std, zero if self.head.output else (), self.sharding)
        if self.patch_embedding is not None and self.patch_embedding.embedding is not None:
            self.patch_embedding.embedding.zero_pad_row()

    def new_cache(self, batch_size: int, max_patches: int) -> KVCache:
        """An empty cache for generation with the whole model."""
        return KVCache(self.config, batch_size, max_patches, like=next(self.parameters()))

    def hidden_states(self, ids_BT: Tensor, documents_BP: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Hidden states (B, P, H) of the given whole patches, from the whole model.

        Args:
            ids_BT: token ids, T = P * K.
            documents_BP: document of each patch, to keep attention within documents; none lets it reach across.
            cache: the patches before these; the new ones are appended to it.
        """
        hidden_PBH = self.transform(self._embed(ids_BT, None), documents_BP, cache)
        return self.ranks.to_partial_work(hidden_PBH).transpose(0, 1)

    def forward(
        self,
        ids_BT: Tensor,
        noise: CalmNoise | KeyedNoise,
        documents_BP: Tensor | None = None,
        kept_BP: Tensor | None = None,
        received: Tensor | None = None,
    ) -> CalmTerms | Tensor:
        """Training loss: the mean over the predicted patches of the negative energy score. Arguments as in `score`."""
        scored = self.score(ids_BT, noise, documents_BP, kept_BP, received)
        if isinstance(scored, Tensor):
            return scored
        terms, _ = scored
        return CalmTerms(-terms.score.mean(), terms.spread.mean(), terms.distance.mean())

    def score(
        self,
        ids_BT: Tensor,
        noise: CalmNoise | KeyedNoise,
        documents_BP: Tensor | None = None,
        kept_BP: Tensor | None = None,
        received: Tensor | None = None,
    ) -> tuple[EnergyTerms, Tensor] | Tensor:
        """Energy terms (R,) and samples (N, R, Z) of the predicted patches.

        Args:
            ids_BT: token ids, T = P * K; patches 1 to P - 1 are predicted.
            noise: for R = B * (P - 1) rows in row-major order, or for the kept ones alone.
            documents_BP: see `hidden_states`.
            kept_BP: False leaves a patch out; none keeps all.
            received: of a stage behind the first, what the stage before it sent.

        Returns:
            Of a stage before the last, what it sends to the next.
        """
        kept_R = None if kept_BP is None else kept_BP[:, 1:].flatten()
        state = self._before_head(ids_BT, documents_BP, received)
        own_noise_NRn = None
        if self.head.input is not None:
            state = self._rows(state, ids_BT, kept_R)
            # Each tensor rank draws its share of the samples with its copy of the head: samples travel, no activations.
            own_noise_NRn = self.ranks.own_rows(noise.head_uniform_NRn)
        if self.head.is_here:
            state = self.head.sample(state, own_noise_NRn, self.kept_or_recomputed)
        if self.head.output is None:
            return state
        samples_NRZ = self.ranks.gather_samples(state)
        target_ids_RK = ids_BT[:, self.config.patch_size :].unflatten(1, (-1, self.config.patch_size)).flatten(0, 1)
        mean_RZ, log_std_RZ = self.autoencoder.encode(
            target_ids_RK if kept_R is None else target_ids_RK[kept_R], for_training=self.training
        )
        beta = self.config.head.beta
        return energy_score(samples_NRZ, mean_RZ, log_std_RZ, noise.target_normal_MRZ, beta), samples_NRZ

    def _before_head(self, ids_BT: Tensor, documents_BP: Tensor | None, received: Tensor | None) -> Tensor:
        """What embedding and layers of this stage come to: hidden states (P', B, H); `received` where it has none."""
        if not self.ranks.sequence_parallel:
            # The last patch predicts nothing. Under sequence parallelism it stays, as P divides among the ranks and
            # P - 1 does not; it changes nothing before it.
            ids_BT = ids_BT[:, : -self.config.patch_size]
            documents_BP = None if documents_BP is None else documents_BP[:, :-1]
        return self.transform(self._embed(ids_BT, received), documents_BP, None)

    def _rows(self, hidden_PBH: Tensor, ids_BT: Tensor, kept_R: Tensor | None) -> Tensor:
        """Hidden states (R, H) before each target, whole on every tensor rank."""
        predicted = ids_BT.shape[1] // self.config.patch_size - 1
        hidden_RH = self.ranks.to_partial_work(hidden_PBH)[:predicted].transpose(0, 1).flatten(0, 1)
        return hidden_RH if kept_R is None else hidden_RH[kept_R]

    def _embed(self, ids_BT: Tensor, received: Tensor | None) -> Tensor:
        if self.patch_embedding is not None:
            embedded: Tensor = self.patch_embedding(self._input(ids_BT))
            return embedded
        assert received is not None, "a stage without the embedding goes on from what it receives"
        return received

    def _input(self, ids_BT: Tensor) -> Tensor:
        if self.config.input == "tokens":
            return ids_BT
        patches_RK = ids_BT.unflatten(1, (-1, self.config.patch_size)).flatten(0, 1)
        mean_RZ, _ = self.autoencoder.encode(patches_RK)
        latents_BPZ: Tensor = mean_RZ.unflatten(0, (ids_BT.shape[0], -1)).to(next(self.parameters()).dtype)
        return latents_BPZ


def check_autoencoder(config: CalmConfig, autoencoder: AutoencoderConfig) -> None:
    """Raise a `UserError` unless the autoencoder fits the model: K, latent size and vocabulary."""
    problems = [
        f"model.{name} = {getattr(config, name)}, but the autoencoder has {getattr(autoencoder, name)}"
        for name in ("patch_size", "latent_size", "vocab_size")
        if getattr(config, name) != getattr(autoencoder, name)
    ]
    if problems:
        raise UserError(
            "the autoencoder does not fit this model:\n  " + "\n  ".join(problems),
            f"model.autoencoder = {config.autoencoder}",
            "take the autoencoder's values, or train another autoencoder",
        )
