"""Causal attention by torch's `scaled_dot_product_attention`, and the cache of keys and values for generation."""

import torch
import torch.nn.functional as F
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from calm_megatron.config.schema import BackboneConfig


class CausalAttention(nn.Module):
    """megatron-core's core attention by torch's `scaled_dot_product_attention`, with an optional cache.

    While `cache` is set, keys and values are appended to it and the queries see all of it.
    """

    def __init__(self, config: TransformerConfig, layer_number: int, attn_mask_type: AttnMaskType, **_: object) -> None:
        super().__init__()
        if attn_mask_type != AttnMaskType.causal:
            raise ValueError(f"causal attention cannot serve {attn_mask_type}")
        self.layer = layer_number - 1
        self.cache: KVCache | None = None

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **_: object
    ) -> Tensor:
        """Query (P, B, heads, h), key and value (P, B, groups, h) -> (P, B, heads * h); mask True where it may look."""
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        if self.cache is not None:
            key, value = self.cache.append(self.layer, key, value)
        new, seen = query.shape[2], key.shape[2]
        if attention_mask is None and 1 < new < seen:
            attention_mask = torch.ones(new, seen, dtype=torch.bool, device=query.device).tril(seen - new)
        output = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attention_mask,
            is_causal=attention_mask is None and new == seen,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return output.permute(2, 0, 1, 3).flatten(2)


class KVCache:
    """Keys and values of all layers for up to `max_patches` patches, allocated once: (layers, 2, B, groups, P, h)."""

    def __init__(self, config: BackboneConfig, batch_size: int, max_patches: int, like: Tensor) -> None:
        groups = config.num_query_groups or config.num_attention_heads
        head_size = config.hidden_size // config.num_attention_heads
        self._memory = like.new_empty(config.num_layers, 2, batch_size, groups, max_patches, head_size)
        self.length = 0
        """Patches in the cache; `advance` counts on after all layers have appended."""

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put the new keys and values (B, groups, new, h) of a layer behind the old ones; returns all of them."""
        end = self.length + key.shape[2]
        if end > self._memory.shape[4]:
            raise ValueError(f"the cache holds {self._memory.shape[4]} patches, {end} are needed")
        keys, values = self._memory[layer]
        keys[:, :, self.length : end] = key
        values[:, :, self.length : end] = value
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, patches: int) -> None:
        """Count patches that all layers have appended."""
        self.length += patches
