"""The token-level baseline: CALM's backbone over tokens, and a linear layer to the vocabulary (plain Llama).

    ids (B, T) -> embedding -> Transformer over T tokens -> hidden (T, B, H) -> logits (T, B, V) -> cross-entropy

Hidden state t predicts token t + 1. Input and output embedding are two matrices, both cut over the vocabulary.
"""

from collections.abc import Collection
from typing import NamedTuple

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from torch import Tensor, nn

from calm_megatron.config.schema import ArConfig
from calm_megatron.losses.next_token import next_token_loss
from calm_megatron.model.attention import KVCache
from calm_megatron.model.backbone import Backbone, transformer_config
from calm_megatron.model.initialise import initialise
from calm_megatron.model.patch_embedding import TokenEmbedding
from calm_megatron.model.sharding import Sharding, padded_vocab_size
from calm_megatron.parallel.tensor_ranks import TensorRanks


class ArTerms(NamedTuple):
    """Scalars of one micro-batch."""

    loss: Tensor
    """Cross-entropy in nats, mean over the predicted tokens."""

    def named(self) -> dict[str, Tensor]:
        """As they are logged."""
        return {"loss": self.loss}


class ArBaseline(Backbone):
    """The model and its training loss."""

    def __init__(
        self,
        config: ArConfig,
        *,
        dtype: torch.dtype = torch.float32,
        recompute: bool = False,
        ranks: TensorRanks | None = None,
        held: Collection[str] | None = None,
    ) -> None:
        ranks = ranks or TensorRanks()
        core = transformer_config(config, dtype, ranks)
        super().__init__(config, core, ranks, recompute, held)
        self.config = config
        self.sharding = Sharding(config, ranks.rank, ranks.size)
        self.embedding = TokenEmbedding(config, core, ranks) if self.holds("embedding") else None
        rows = padded_vocab_size(config.vocab_size, ranks.size)
        self.output: ColumnParallelLinear | None = None
        if self.holds("output"):
            self.output = ColumnParallelLinear(
                config.hidden_size, rows, config=core, init_method=nn.init.zeros_, bias=False, gather_output=False
            )
        part = rows // ranks.size
        self._rows_beyond = min(part, max(0, (ranks.rank + 1) * part - config.vocab_size))
        self.to(dtype)

    def initialise(self, seed: int) -> None:
        """Draw the initial weights."""
        initialise(self, seed, self.config.init_method_std, sharding=self.sharding)
        if self.embedding is not None:
            self.embedding.zero_pad_row()

    def new_cache(self, batch_size: int, max_patches: int) -> KVCache:
        """An empty cache of so many tokens for generation with the whole model."""
        return KVCache(self.config, batch_size, max_patches, like=next(self.parameters()))

    def hidden_states(self, ids_BT: Tensor, documents_BT: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Hidden states (B, T, H) of the given tokens, from the whole model.

        Args:
            ids_BT: token ids.
            documents_BT: document of each token, to keep attention within documents; none lets it reach across.
            cache: the tokens before these; the new ones are appended to it.
        """
        assert self.embedding is not None, "a stage of a pipeline has no whole model"
        hidden_TBH = self.transform(self.embedding(ids_BT), documents_BT, cache)
        return self.ranks.to_partial_work(hidden_TBH).transpose(0, 1)

    def logits(self, hidden_RH: Tensor) -> Tensor:
        """Logits (R, V) behind hidden states that every tensor rank has whole; whole on each of them, too."""
        assert self.output is not None, "a stage of a pipeline has no whole model"
        rows, ranks = len(hidden_RH), self.ranks
        if ranks.sequence_parallel:
            # The layer gathers its rows from the ranks: each gives its part.
            hidden_RH = ranks.own_rows(F.pad(hidden_RH, (0, 0, 0, -rows % ranks.size)))
        part_R1v, _ = self.output(hidden_RH.unsqueeze(1))
        return ranks.gather_columns(part_R1v)[:rows, 0, : self.config.vocab_size]

    def forward(
        self, ids_BT: Tensor, documents_BT: Tensor | None = None, received: Tensor | None = None
    ) -> ArTerms | Tensor:
        """Mean cross-entropy of tokens 1 to T - 1; of a stage before the last, what it sends to the next.

        Args:
            ids_BT: token ids.
            documents_BT: document of each token, to keep attention within documents; none lets it reach across.
            received: of a stage behind the first, what the stage before it sent.
        """
        result = self.losses(ids_BT, documents_BT, received)
        return result if self.output is None else ArTerms(result.mean())

    def losses(self, ids_BT: Tensor, documents_BT: Tensor | None = None, received: Tensor | None = None) -> Tensor:
        """Cross-entropy in nats of each of tokens 1 to T - 1, shape (T - 1, B); otherwise as `forward`."""
        ids, documents = ids_BT, documents_BT
        if not self.ranks.sequence_parallel:
            # T divides among the ranks, T - 1 does not; the last token changes nothing before it.
            ids, documents = ids[:, :-1], None if documents is None else documents[:, :-1]
        if self.embedding is not None:
            received = self.embedding(ids)
        assert received is not None, "a stage without the embedding goes on from what it receives"
        hidden_TBH = self.transform(received, documents, None)
        if self.output is None:
            return hidden_TBH
        logits_TBv, _ = self.output(hidden_TBH)
        targets_TB = ids_BT[:, 1:].transpose(0, 1).contiguous()
        return next_token_loss(logits_TBv[: len(targets_TB)], targets_TB, self._rows_beyond)
