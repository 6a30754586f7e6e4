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
        """Query (P, B, heads, h), key and value (P, B, groups, h) -> (P, B, heads * h).

        The mask is True where a query may look, or what is added to the scores.
        """
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        if self.cache is not None:
            key, value = self.cache.append(self.layer, key, value)
        new, seen = query.shape[2], key.shape[2]
        if attention_mask is None and 1 < new < seen:
            attention_mask = torch.ones(new, seen, dtype=torch.bool, device=query.device).tril(seen - new)
        if attention_mask is not None and query.is_cuda:
            # The kernel that takes masks there takes no groups; without it all scores would be in memory.
            key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for tensor in (key, value))
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
    """Keys and values of all layers for up to `max_patches` patches, allocated once: (layers, 2, B, groups, P, h).

    Of `tensor_size` ranks that share the attention groups, each keeps its own.
    """

    mask: Tensor | None = None
    """What the next patches may look at, (B, 1, new, all of the cache and the new); none means all before them."""

    def __init__(
        self, config: BackboneConfig, batch_size: int, max_patches: int, like: Tensor, tensor_size: int = 1
    ) -> None:
        groups = (config.num_query_groups or config.num_attention_heads) // tensor_size
        head_size = config.hidden_size // config.num_attention_heads
        self._memory = like.new_empty(config.num_layers, 2, batch_size, groups, max_patches, head_size)
        self.length = 0
        """Patches in the cache; `advance` counts on after all layers have appended."""

    def positions(self, patches: int, device: torch.device) -> Tensor:
        """Where in their text the next patches stand: (patches,), or (patches, B) where rows differ."""
        return torch.arange(self.length, self.length + patches, device=device)

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


class BranchingCache(KVCache):
    """A text, and behind it branches that leave it at W places, each growing patch by patch.

    The text comes first and once; then `grow` says where the W next patches stand and what they see, and all of them go
    through the layers side by side, as if they were a sequence. So a text that many continuations share is read once.

    Args:
        config: of the model.
        text_BP: documents of the text's patches; attention stays within them. All zeros lets it reach across.
        branches: W.
        depth: patches of a branch, at most.
        like: gives type and device.
        tensor_size: ranks that share the attention groups.
    """

    def __init__(
        self, config: BackboneConfig, text_BP: Tensor, branches: int, depth: int, like: Tensor, tensor_size: int = 1
    ) -> None:
        rows, patches = text_BP.shape
        super().__init__(config, rows, patches + branches * depth, like, tensor_size)
        self._text_BP = text_BP
        self._grown: list[Tensor] = []
        self._positions_WB: Tensor | None = None

    def positions(self, patches: int, device: torch.device) -> Tensor:
        """Those of the text from 0, those of branches as `grow` was told."""
        return super().positions(patches, device) if self._positions_WB is None else self._positions_WB

    def grow(self, start_BW: Tensor, documents_BW: Tensor) -> None:
        """Make ready for the next patch of each branch.

        Args:
            start_BW: last patch of the text that is before the branch.
            documents_BW: document of the branch's next patch, of which alone it sees its own text and branch.
        """
        patches = torch.arange(self._text_BP.shape[1], device=start_BW.device)
        before_BWP = patches <= start_BW.unsqueeze(-1)
        self._grown.append(documents_BW)
        same_BWP = self._text_BP.unsqueeze(1) == documents_BW.unsqueeze(-1)
        own_WW = torch.eye(start_BW.shape[1], dtype=torch.bool, device=start_BW.device)
        own_BWW = [own_WW & (earlier_BW == documents_BW).unsqueeze(-1) for earlier_BW in self._grown]
        self.mask = torch.cat([before_BWP & same_BWP, *own_BWW], dim=-1).unsqueeze(1)
        self._positions_WB = (start_BW + len(self._grown)).transpose(0, 1)
