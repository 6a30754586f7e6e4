"""The compressed input: K token embeddings (or the frozen encoder's latent) to one input vector of the backbone.

ids (B, T) -> embeddings (B, P, K * H) -> linear to 2H -> SiLU -> linear to H -> LayerNorm -> (P, B, H)
"""

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from calm_megatron.config.schema import BackboneConfig, CalmConfig
from calm_megatron.model.norms import LayerNorm
from calm_megatron.model.sharding import padded_vocab_size
from calm_megatron.parallel.tensor_ranks import TensorRanks


class TokenEmbedding(nn.Module):
    """Embeds tokens; the pad token's row serves but never learns, as torch's `padding_idx` has it."""

    def __init__(self, config: BackboneConfig, core: TransformerConfig, ranks: TensorRanks) -> None:
        super().__init__()
        self.pad_id = config.pad_token_id
        self.ranks = ranks
        self.tokens = VocabParallelEmbedding(
            padded_vocab_size(config.vocab_size, ranks.size),
            config.hidden_size,
            init_method=nn.init.zeros_,
            reduce_scatter_embeddings=ranks.sequence_parallel,
            config=core,
        )

    def zero_pad_row(self) -> None:
        """Set the pad token's embedding to zero, on the rank that holds it."""
        first, end = self.tokens.vocab_start_index, self.tokens.vocab_end_index
        if self.pad_id is not None and first <= self.pad_id < end:
            with torch.no_grad():
                self.tokens.weight[self.pad_id - first].zero_()

    def forward(self, ids_BT: Tensor) -> Tensor:
        """(B, T) -> (T, B, H); under sequence parallelism this rank's part of T."""
        embedded: Tensor = self.tokens(ids_BT)
        ids_TB = ids_BT.transpose(0, 1)
        if self.ranks.sequence_parallel:
            ids_TB = self.ranks.own_rows(ids_TB)
        else:
            embedded = embedded.transpose(0, 1)
        if self.pad_id is None:
            return embedded
        return torch.where((ids_TB == self.pad_id).unsqueeze(-1), embedded.detach(), embedded)


class Compression(nn.Module):
    """The two-layer map from a patch's input features to the backbone's input vector."""

    def __init__(self, input_size: int, hidden_size: int, core: TransformerConfig, ranks: TensorRanks) -> None:
        super().__init__()
        common = {"config": core, "init_method": nn.init.zeros_, "bias": True}
        self.linear_in = ColumnParallelLinear(input_size, 2 * hidden_size, gather_output=False, **common)
        self.linear_out = RowParallelLinear(
            2 * hidden_size, hidden_size, input_is_parallel=True, skip_bias_add=False, **common
        )
        self.norm = LayerNorm(hidden_size, eps=1e-6)
        if ranks.sequence_parallel:
            for weight in (self.linear_out.bias, self.norm.weight, self.norm.bias):
                ranks.sum_gradients(weight)

    def forward(self, features: Tensor) -> Tensor:
        """(..., input_size) -> (..., H)."""
        inner, _ = self.linear_in(features)
        output, _ = self.linear_out(F.silu(inner))
        normed: Tensor = self.norm(output)
        return normed


class PatchEmbedding(nn.Module):
    """Tokens of whole patches, or latents, to the backbone's input."""

    def __init__(self, config: CalmConfig, core: TransformerConfig, ranks: TensorRanks) -> None:
        super().__init__()
        self.ranks = ranks
        self.patch_size = config.patch_size
        self.embedding: TokenEmbedding | None = None
        if config.input == "tokens":
            self.embedding = TokenEmbedding(config, core, ranks)
        input_size = config.patch_size * config.hidden_size if config.input == "tokens" else config.latent_size
        self.compression = Compression(input_size, config.hidden_size, core, ranks)

    def forward(self, ids_BT_or_latents_BPZ: Tensor) -> Tensor:
        """Returns (P, B, H); under sequence parallelism this rank's part of P."""
        if self.embedding is not None:
            embedded_TBH = self.embedding(ids_BT_or_latents_BPZ)
            features = embedded_TBH.unflatten(0, (-1, self.patch_size)).transpose(1, 2).flatten(2)
        else:
            features = ids_BT_or_latents_BPZ.transpose(0, 1)
            if self.ranks.sequence_parallel:
                features = self.ranks.own_rows(features)
        output: Tensor = self.compression(features.contiguous())
        return output
