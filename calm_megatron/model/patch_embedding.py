"""The compressed input: K token embeddings (or the frozen encoder's latent) to one input vector of the backbone.

ids (B, T) -> embeddings (B, P, K * H) -> linear to 2H -> SiLU -> linear to H -> LayerNorm -> (P, B, H)
"""

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from calm_megatron.config.schema import CalmConfig
from calm_megatron.model.norms import LayerNorm


class TokenEmbedding(nn.Module):
    """Embeds tokens; the pad token's row serves but never learns, as torch's `padding_idx` has it."""

    def __init__(self, config: CalmConfig, core: TransformerConfig) -> None:
        super().__init__()
        self.pad_id = config.pad_token_id
        self.tokens = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, init_method=nn.init.zeros_, config=core
        )

    def forward(self, ids_BT: Tensor) -> Tensor:
        """(B, T) -> (B, T, H)."""
        embedded: Tensor = self.tokens(ids_BT)
        if self.pad_id is None:
            return embedded
        return torch.where((ids_BT == self.pad_id).unsqueeze(-1), embedded.detach(), embedded)


class Compression(nn.Module):
    """The two-layer map from a patch's input features to the backbone's input vector."""

    def __init__(self, input_size: int, hidden_size: int, core: TransformerConfig) -> None:
        super().__init__()
        common = {"config": core, "init_method": nn.init.zeros_, "bias": True}
        self.linear_in = ColumnParallelLinear(input_size, 2 * hidden_size, gather_output=False, **common)
        self.linear_out = RowParallelLinear(
            2 * hidden_size, hidden_size, input_is_parallel=True, skip_bias_add=False, **common
        )
        self.norm = LayerNorm(hidden_size, eps=1e-6)

    def forward(self, features: Tensor) -> Tensor:
        """(..., input_size) -> (..., H)."""
        inner, _ = self.linear_in(features)
        output, _ = self.linear_out(F.silu(inner))
        normed: Tensor = self.norm(output)
        return normed


class PatchEmbedding(nn.Module):
    """Tokens of whole patches, or latents, to the backbone's input."""

    def __init__(self, config: CalmConfig, core: TransformerConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.embedding: TokenEmbedding | None = None
        if config.input == "tokens":
            self.embedding = TokenEmbedding(config, core)
        input_size = config.patch_size * config.hidden_size if config.input == "tokens" else config.latent_size
        self.compression = Compression(input_size, config.hidden_size, core)

    def forward(self, ids_BT_or_latents_BPZ: Tensor) -> Tensor:
        """Returns (P, B, H)."""
        features = ids_BT_or_latents_BPZ
        if self.embedding is not None:
            features = self.embedding(features).unflatten(1, (-1, self.patch_size)).flatten(2)
        output: Tensor = self.compression(features.transpose(0, 1).contiguous())
        return output
