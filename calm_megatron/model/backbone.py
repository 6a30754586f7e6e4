"""The Transformer over patches: megatron-core's layers around torch's attention and our norms.

megatron-core's order of axes is [sequence, batch, hidden]; here the sequence counts patches: `hidden_PBH`.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import cast

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
from torch.utils.checkpoint import checkpoint

from calm_megatron.config.schema import BackboneConfig
from calm_megatron.model.attention import CausalAttention, KVCache
from calm_megatron.model.kernels import has_transformer_engine
from calm_megatron.model.norms import RMSNorm
from calm_megatron.parallel.tensor_ranks import TensorRanks


def transformer_config(config: BackboneConfig, dtype: torch.dtype, ranks: TensorRanks) -> TransformerConfig:
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
        use_cpu_initialization=linear_layers()[0] is ColumnParallelLinear,  # TransformerEngine's live on the GPU
    )


def linear_layers() -> tuple[type[nn.Module], type[nn.Module]]:
    """The column- and the row-parallel linear layer: TransformerEngine's on a GPU that has it, else megatron-core's.

    TransformerEngine's have not yet been run with this code, for want of a GPU.
    """
    if has_transformer_engine():
        # Imported here because it is a package of GPU machines.
        from megatron.core.extensions.transformer_engine import TEColumnParallelLinear, TERowParallelLinear

        return TEColumnParallelLinear, TERowParallelLinear
    return ColumnParallelLinear, RowParallelLinear


def layer_spec() -> ModuleSpec:
    """The parts of one Transformer layer."""
    column, row = linear_layers()
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=column,
                    core_attention=CausalAttention,
                    linear_proj=row,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=RMSNorm,
            mlp=ModuleSpec(
                module=MLP,
                submodules=MLPSubmodules(linear_fc1=column, linear_fc2=row),
            ),
            mlp_bda=get_bias_dropout_add,
        ),
    )


def rotary_angles(head_size: int, base: float, positions: Tensor) -> Tensor:
    """RoPE angles (patches, B or 1, 1, head_size) in fp32, halves repeated (not interleaved).

    Args:
        head_size: h, even.
        base: of the frequencies.
        positions: (patches,) if they are the same in all rows, else (patches, B).
    """
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32, device=positions.device) / head_size
    if positions.dim() == 1:
        positions = positions.unsqueeze(1)
    angles = positions.float()[:, :, None, None] * base**-exponents
    return torch.cat([angles, angles], dim=-1)


def document_mask(documents_BP: Tensor) -> Tensor:
    """Where attention may look, (B, 1, P, P): at itself and backwards, within the same document."""
    patches = documents_BP.shape[1]
    causal = torch.ones(patches, patches, dtype=torch.bool, device=documents_BP.device).tril()
    same = documents_BP[:, :, None] == documents_BP[:, None, :]
    return (same & causal).unsqueeze(1)


def attention_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What a mask adds to the scores, of its shape: 0 where attention may look, else -inf.

    Made once for all layers: of a mask each would make one of its own, and keep it for the backward pass. Rows begin at
    multiples of eight numbers, as torch's kernel on GPUs wants them; others it copies.
    """
    patches = mask.shape[-1]
    room = torch.full((*mask.shape[:-1], -(-patches // 8) * 8), -torch.inf, dtype=dtype, device=mask.device)
    return room[..., :patches].masked_fill_(mask, 0.0)


class Backbone(nn.Module):
    """Transformer layers and the last norm: what CALM and the baseline are built around.

    A pipeline stage holds some of the model's layers (plan/layers.py lists them), under the names of the whole model.

    Args:
        config: of the model.
        core: megatron-core's view of it.
        ranks: this rank among the tensor ranks.
        recompute: keep only each layer's input in training, and compute the layer again in the backward pass.
        held: names of the layers of this stage; none holds the whole model.
    """

    def __init__(
        self,
        config: BackboneConfig,
        core: TransformerConfig,
        ranks: TensorRanks,
        recompute: bool,
        held: Collection[str] | None,
    ) -> None:
        super().__init__()
        self.ranks = ranks
        self.recompute = recompute
        self.held = held
        self._head_size = config.hidden_size // config.num_attention_heads
        self._rotary_base = config.rotary_base
        spec = layer_spec()
        self.layers = nn.ModuleDict(
            {
                str(number): spec.module(core, spec.submodules, layer_number=number + 1)
                for number in range(config.num_layers)
                if self.holds(f"layers.{number}")
            }
        )
        self.final_norm: RMSNorm | None = None
        if self.holds("final_norm"):
            self.final_norm = RMSNorm(config.hidden_size, config.layernorm_epsilon)
        if ranks.sequence_parallel:
            for module in self.modules():
                if isinstance(module, RMSNorm):
                    ranks.sum_gradients(module.weight)

    def holds(self, layer: str) -> bool:
        """Whether a layer of the model is here."""
        return self.held is None or layer in self.held

    def transform(self, input_PBH: Tensor, documents_BP: Tensor | None, cache: KVCache | None) -> Tensor:
        """Hidden states (P, B, H); under sequence parallelism, input and output are this rank's part of P.

        Args:
            input_PBH: embedded patches or tokens, or what the stage before made of them.
            documents_BP: document of each, to keep attention within documents; none lets it reach across.
            cache: those before these; the new ones are appended to it.
        """
        hidden_PBH = input_PBH
        if self.layers:
            patches = len(input_PBH) * (self.ranks.size if self.ranks.sequence_parallel else 1)
            device = input_PBH.device
            positions = cache.positions(patches, device) if cache else torch.arange(patches, device=device)
            rotary = rotary_angles(self._head_size, self._rotary_base, positions)
            mask = cache.mask if cache else None
            if documents_BP is not None:
                mask = attention_bias(document_mask(documents_BP), input_PBH.dtype)
            with self._attached(cache):
                for layer in self.layers.values():
                    hidden_PBH = self.kept_or_recomputed(_run_layer, layer, hidden_PBH, mask, rotary)
            if cache:
                cache.advance(patches)
        return hidden_PBH if self.final_norm is None else self.final_norm(hidden_PBH)

    def kept_or_recomputed(self, function: Callable[..., Tensor], *arguments: object) -> Tensor:
        """The function's value; in training with recomputation, only its arguments are kept for the backward pass."""
        if self.recompute and self.training:
            output: Tensor = checkpoint(function, *arguments, use_reentrant=False)
            return output
        return function(*arguments)

    @contextlib.contextmanager
    def _attached(self, cache: KVCache | None) -> Iterator[None]:
        path = "self_attention.core_attention"
        attentions = [cast(CausalAttention, layer.get_submodule(path)) for layer in self.layers.values()]
        for attention in attentions:
            attention.cache = cache
        try:
            yield
        finally:
            for attention in attentions:
                attention.cache = None


def _run_layer(layer: nn.Module, hidden_PBH: Tensor, mask: Tensor | None, rotary: Tensor) -> Tensor:
    output, _ = layer(hidden_PBH, attention_mask=mask, rotary_pos_emb=rotary)
    result: Tensor = output
    return result
