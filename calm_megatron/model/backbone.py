"""The Transformer over patches: megatron-core's layers, with torch's attention where TransformerEngine is absent.

megatron-core's order of axes is [sequence, batch, hidden]; here the sequence counts patches: `hidden_PBH`.
"""

import torch
import torch.nn.functional as F
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor, nn

from calm_megatron.config.schema import CalmConfig
from calm_megatron.model.norms import RMSNorm
from calm_megatron.parallel.tensor_ranks import TensorRanks


def transformer_config(config: CalmConfig, dtype: torch.dtype, ranks: TensorRanks) -> TransformerConfig:
    """megatron-core's view of the backbone: Llama's layer (RMSNorm, RoPE, SwiGLU, grouped queries, no biases)."""
    return TransformerConfig(
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.ffn_hidden_size,
        num_attention_heads=config.num_attention_heads,
        num_query_groups=config.num_query_groups or config.num_attention_heads,
        layernorm_epsilon=config.layernorm_epsilon,
        normalization="RMSNorm",
        activation_func=F.silu,
        gated_linear_unit=True,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_dropout_fusion=False,
        bias_activation_fusion=False,
        apply_rope_fusion=False,
        tensor_model_parallel_size=ranks.size,
        sequence_parallel=ranks.sequence_parallel,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        # Weights are set by name from keyed streams (model/initialise.py), not while the layers are built.
        perform_initialization=False,
        use_cpu_initialization=True,
    )


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

    def __init__(self, config: CalmConfig, batch_size: int, max_patches: int, like: Tensor) -> None:
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


def layer_spec() -> ModuleSpec:
    """The parts of one Transformer layer."""
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=ColumnParallelLinear,
                    core_attention=CausalAttention,
                    linear_proj=RowParallelLinear,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=RMSNorm,
            mlp=ModuleSpec(
                module=MLP,
                submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear),
            ),
            mlp_bda=get_bias_dropout_add,
        ),
    )


def rotary_angles(head_size: int, base: float, start: int, patches: int, device: torch.device) -> Tensor:
    """RoPE angles (patches, 1, 1, head_size) in fp32 for positions from `start`, halves repeated (not interleaved)."""
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32, device=device) / head_size
    positions = torch.arange(start, start + patches, dtype=torch.float32, device=device)
    angles = torch.outer(positions, base**-exponents)
    return torch.cat([angles, angles], dim=-1)[:, None, None, :]


def document_mask(documents_BP: Tensor) -> Tensor:
    """Where attention may look, (B, 1, P, P): at itself and backwards, within the same document."""
    patches = documents_BP.shape[1]
    causal = torch.ones(patches, patches, dtype=torch.bool, device=documents_BP.device).tril()
    same = documents_BP[:, :, None] == documents_BP[:, None, :]
    return (same & causal).unsqueeze(1)
