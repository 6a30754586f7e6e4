"""CALM: from tokens to the hidden state of each patch, and from there to samples of the next one.

    ids (B, T) -> patch embedding -> Transformer over P patches -> hidden (B, P, H) -> head -> latents (N, R, Z)

Hidden state j predicts patch j + 1; the first patch of a sequence is never predicted. The frozen autoencoder gives the
targets; it is no part of the module tree.
"""

from collections.abc import Sequence
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

    @classmethod
    def draw(
        cls,
        config: CalmConfig,
        streams: RandomStreams,
        purpose: str,
        step: int,
        sequences: Sequence[int],
        patches: int,
    ) -> "CalmNoise":
        """The noise of `patches` predicted patches of each sequence, rows in the order (sequence, patch)."""
        head = config.head
        uniform = streams.uniform(f"{purpose} head", step, sequences, (patches, head.num_samples, head.noise_size))
        target_shape = (patches, head.num_target_samples, config.latent_size)
        normal = streams.normal(f"{purpose} target", step, sequences, target_shape)
        return cls(
            head_uniform_NRn=uniform.flatten(0, 1).transpose(0, 1) - 0.5,
            target_normal_MRZ=normal.flatten(0, 1).transpose(0, 1),
        )


class CalmTerms(NamedTuple):
    """Scalars of one micro-batch: means over its predicted patches."""

    loss: Tensor
    """The negative energy score."""
    spread: Tensor
    """Mean distance among the model's samples."""
    distance: Tensor
    """Mean distance of the model's samples to the targets."""


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
    ) -> None:
        check_autoencoder(config, autoencoder.config)
        ranks = ranks or TensorRanks()
        core = transformer_config(config, dtype, ranks)
        super().__init__(config, core, ranks, recompute)
        self.config = config
        self.sharding = Sharding(config, ranks.rank, ranks.size)
        self.autoencoder = autoencoder
        self.patch_embedding = PatchEmbedding(config, core, ranks)
        self.head = EnergyHead(config)
        for weight in self.head.parameters():
            ranks.sum_gradients(weight)
        self.to(dtype)

    def initialise(self, seed: int) -> None:
        """Draw the initial weights; the head's last layer and the pad token's row start at zero."""
        zero = ("head.output.linear_out.weight", "head.output.linear_out.bias")
        initialise(self, seed, self.config.init_method_std, zero, self.sharding)
        if self.patch_embedding.embedding is not None:
            self.patch_embedding.embedding.zero_pad_row()

    def new_cache(self, batch_size: int, max_patches: int) -> KVCache:
        """An empty cache for generation."""
        return KVCache(self.config, batch_size, max_patches, like=self.final_norm.weight)

    def hidden_states(self, ids_BT: Tensor, documents_BP: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Hidden states (B, P, H) of the given whole patches.

        Args:
            ids_BT: token ids, T = P * K.
            documents_BP: document of each patch, to keep attention within documents; none lets it reach across.
            cache: the patches before these; the new ones are appended to it.
        """
        hidden_PBH = self.transform(self.patch_embedding(self._input(ids_BT)), documents_BP, cache)
        return self.ranks.to_partial_work(hidden_PBH).transpose(0, 1)

    def forward(
        self, ids_BT: Tensor, noise: CalmNoise, documents_BP: Tensor | None = None, kept_BP: Tensor | None = None
    ) -> CalmTerms:
        """Training loss: the mean over the predicted patches of the negative energy score. Arguments as in `score`."""
        terms, _ = self.score(ids_BT, noise, documents_BP, kept_BP)
        return CalmTerms(-terms.score.mean(), terms.spread.mean(), terms.distance.mean())

    def score(
        self, ids_BT: Tensor, noise: CalmNoise, documents_BP: Tensor | None = None, kept_BP: Tensor | None = None
    ) -> tuple[EnergyTerms, Tensor]:
        """Energy terms (R,) and samples (N, R, Z) of the predicted patches.

        Args:
            ids_BT: token ids, T = P * K; patches 1 to P - 1 are predicted.
            noise: for R = B * (P - 1) rows in row-major order, or for the kept ones alone.
            documents_BP: see `hidden_states`.
            kept_BP: False leaves a patch out; none keeps all.
        """
        K = self.config.patch_size
        hidden_RH = self._hidden_before_each_target(ids_BT, documents_BP).flatten(0, 1)
        target_ids_RK = ids_BT[:, K:].unflatten(1, (-1, K)).flatten(0, 1)
        if kept_BP is not None:
            kept_R = kept_BP[:, 1:].flatten()
            hidden_RH, target_ids_RK = hidden_RH[kept_R], target_ids_RK[kept_R]
        mean_RZ, log_std_RZ = self.autoencoder.encode(target_ids_RK, for_training=self.training)
        # Each tensor rank draws its share of the samples with its copy of the head; samples, not activations, travel.
        own_noise_NRn = self.ranks.own_rows(noise.head_uniform_NRn)
        samples_NRZ = self.ranks.gather_samples(self.head.sample(hidden_RH, own_noise_NRn))
        beta = self.config.head.beta
        return energy_score(samples_NRZ, mean_RZ, log_std_RZ, noise.target_normal_MRZ, beta), samples_NRZ

    def _hidden_before_each_target(self, ids_BT: Tensor, documents_BP: Tensor | None) -> Tensor:
        """Hidden states (B, P - 1, H) of all patches but the last."""
        if self.ranks.sequence_parallel:
            # P divides among the ranks, P - 1 does not; the last patch changes nothing before it.
            return self.hidden_states(ids_BT, documents_BP)[:, :-1]
        before = None if documents_BP is None else documents_BP[:, :-1]
        return self.hidden_states(ids_BT[:, : -self.config.patch_size], before)

    def _input(self, ids_BT: Tensor) -> Tensor:
        if self.config.input == "tokens":
            return ids_BT
        patches_RK = ids_BT.unflatten(1, (-1, self.config.patch_size)).flatten(0, 1)
        mean_RZ, _ = self.autoencoder.encode(patches_RK)
        latents_BPZ: Tensor = mean_RZ.unflatten(0, (ids_BT.shape[0], -1)).to(self.final_norm.weight.dtype)
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
