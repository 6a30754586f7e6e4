"""CALM: from tokens to the hidden state of each patch, and from there to samples of the next one.

    ids (B, T) -> patch embedding -> Transformer over P patches -> hidden (B, P, H) -> head -> loss or latents (N, R, Z)

Hidden state j predicts patch j + 1; the first patch of a sequence is never predicted. The frozen autoencoder gives the
targets; it is no part of the module tree.

A pipeline stage is the same model with some of its layers: what reaches it from the stage before comes as `received`,
and in place of the result it gives what goes to the next.
"""

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import AutoencoderConfig, CalmConfig
from calm_megatron.model.attention import KVCache
from calm_megatron.model.autoencoder import FrozenAutoencoder
from calm_megatron.model.backbone import Backbone, transformer_config
from calm_megatron.model.heads.head import Head, HeadTerms
from calm_megatron.model.heads.kinds import build_head
from calm_megatron.model.initialise import initialise
from calm_megatron.model.noise import LossNoise, NoiseOfRows
from calm_megatron.model.patch_embedding import PatchEmbedding
from calm_megatron.model.sharding import Sharding
from calm_megatron.parallel.tensor_ranks import TensorRanks


class CalmTerms(NamedTuple):
    """Scalars of one micro-batch: means over its predicted patches."""

    loss: Tensor
    """The head's."""
    parts: dict[str, Tensor]
    """What it is made of, by the names under which it is logged."""

    def named(self) -> dict[str, Tensor]:
        """As they are logged."""
        return {"loss": self.loss, **self.parts}


class Scored(NamedTuple):
    """What a stage makes of a micro-batch of R predicted patches."""

    terms: HeadTerms | None = None
    """The head's, at the last stage."""
    sent: Tensor | None = None
    """What goes to the next stage, at all others."""
    hidden_RH: Tensor | None = None
    """Hidden states before the patches, on every tensor rank, at the stage that holds the head's input."""


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
        self.head: Head = build_head(config, ranks, self.holds)
        for weight in self.head.parameters():
            ranks.sum_gradients(weight)
        self.to(dtype)

    def initialise(self, seed: int) -> None:
        """Draw the initial weights, those of the head as the head says; the pad token's row starts at zero."""
        zero = tuple(f"head.{name}" for name in self.head.zero_weights())
        xavier = tuple(f"head.{name}" for name in self.head.xavier_weights())
        initialise(self, seed, self.config.init_method_std, zero, self.sharding, xavier)
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
        noise: LossNoise,
        documents_BP: Tensor | None = None,
        kept_BP: Tensor | None = None,
        received: Tensor | None = None,
    ) -> CalmTerms | Tensor:
        """Training loss: the mean over the predicted patches of the head's. Arguments as in `score`."""
        scored = self.score(ids_BT, noise, documents_BP, kept_BP, received)
        if scored.terms is None:
            assert scored.sent is not None
            return scored.sent
        parts = {name: part_R.mean() for name, part_R in scored.terms.parts.items()}
        return CalmTerms(scored.terms.loss_R.mean(), parts)

    def score(
        self,
        ids_BT: Tensor,
        noise: LossNoise,
        documents_BP: Tensor | None = None,
        kept_BP: Tensor | None = None,
        received: Tensor | None = None,
    ) -> Scored:
        """The head's terms of the predicted patches, one by one.

        Args:
            ids_BT: token ids, T = P * K; patches 1 to P - 1 are predicted.
            noise: for R = B * (P - 1) rows in row-major order, or for the kept ones alone.
            documents_BP: see `hidden_states`.
            kept_BP: False leaves a patch out; none keeps all.
            received: of a stage behind the first, what the stage before it sent.
        """
        kept_R = None if kept_BP is None else kept_BP[:, 1:].flatten()
        state = self._before_head(ids_BT, documents_BP, received)
        if not self.head.is_here:
            return Scored(sent=state)
        hidden_RH = None
        if self.head.input is not None:
            state = hidden_RH = self._rows(state, ids_BT, kept_R)
        result = self.head.loss(state, lambda: self._posterior(ids_BT, kept_R), noise, self.kept_or_recomputed)
        if isinstance(result, Tensor):
            return Scored(sent=result, hidden_RH=hidden_RH)
        return Scored(terms=result, hidden_RH=hidden_RH)

    def draw(self, head: Head, hidden_RH: Tensor, noise: LossNoise, count: int, steps: int | None = None) -> Tensor:
        """Samples (count, R, Z) of a whole head of this model; each tensor rank draws those of its share of the rows.

        Arguments as of `Head.sample`.
        """
        rows = len(hidden_RH)
        share = -(-rows // self.ranks.size)
        # The last rank's share is filled up with its last row.
        first = self.ranks.rank * share
        own = torch.arange(first, first + share, device=hidden_RH.device).clamp(max=rows - 1)
        drawn_NRZ = head.sample(hidden_RH[own], NoiseOfRows(noise, own.cpu()), count, steps)
        return self.ranks.gather_samples(drawn_NRZ.transpose(0, 1))[:rows].transpose(0, 1)

    def _posterior(self, ids_BT: Tensor, kept_R: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation (R, Z) of the patches to be predicted."""
        target_ids_RK = ids_BT[:, self.config.patch_size :].unflatten(1, (-1, self.config.patch_size)).flatten(0, 1)
        return self.autoencoder.encode(
            target_ids_RK if kept_R is None else target_ids_RK[kept_R], for_training=self.training
        )

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
