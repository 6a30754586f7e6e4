"""One table of weights: our name, the official name or names, how they are joined, and how tensor ranks cut them.

An entry with several official names joins them into one matrix of ours: `stack` puts them one after the other (gate
and up of the feed-forward layer), `groups` interleaves query, key and value rows per query group, as megatron-core
keeps them.
"""

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from calm_megatron.config.schema import BackboneConfig

Join = Literal["same", "stack", "groups"]
Cut = Literal["whole", "rows", "columns"]


@dataclass(frozen=True)
class Entry:
    """One weight of ours; `{i}` stands for the number of the layer or block."""

    ours: str
    official: tuple[str, ...]
    join: Join = "same"
    cut: Cut = "whole"
    """How tensor ranks share it: output rows, input columns, or a copy each."""


def _both(ours: str, official: str, weight: Cut = "whole", bias: Cut = "whole") -> tuple[Entry, Entry]:
    return (
        Entry(f"{ours}.weight", (f"{official}.weight",), cut=weight),
        Entry(f"{ours}.bias", (f"{official}.bias",), cut=bias),
    )


EMBEDDING = "patch_embedding.embedding.tokens.weight"
VOCABULARY = (EMBEDDING, "embedding.tokens.weight", "output.weight")
"""Matrices with a row for each token, filled up to a multiple of the tensor ranks."""
_BLOCK, _OFFICIAL_BLOCK = "head.blocks.{i}", "mlp_generator.mlp_blocks.{i}"
_DENOISER = "generative_head.net"
_DENOISER_BLOCK = f"{_DENOISER}.res_blocks.{{i}}"


def _backbone(prefix: str) -> tuple[Entry, ...]:
    """Layers and last norm, under the prefix of the official names."""
    ours, official = "layers.{i}", f"{prefix}.layers.{{i}}"
    return (
        Entry(f"{ours}.input_layernorm.weight", (f"{official}.input_layernorm.weight",)),
        Entry(
            f"{ours}.self_attention.linear_qkv.weight",
            tuple(f"{official}.self_attn.{name}_proj.weight" for name in "qkv"),
            "groups",
            "rows",
        ),
        Entry(f"{ours}.self_attention.linear_proj.weight", (f"{official}.self_attn.o_proj.weight",), cut="columns"),
        Entry(f"{ours}.pre_mlp_layernorm.weight", (f"{official}.post_attention_layernorm.weight",)),
        Entry(
            f"{ours}.mlp.linear_fc1.weight",
            (f"{official}.mlp.gate_proj.weight", f"{official}.mlp.up_proj.weight"),
            "stack",
            "rows",
        ),
        Entry(f"{ours}.mlp.linear_fc2.weight", (f"{official}.mlp.down_proj.weight",), cut="columns"),
        Entry("final_norm.weight", (f"{prefix}.norm.weight",)),
    )


CALM_ENTRIES: tuple[Entry, ...] = (
    Entry(EMBEDDING, ("transformer.embed_tokens.weight",), cut="rows"),
    *_both("patch_embedding.compression.linear_in", "embed_proj.0", weight="rows", bias="rows"),
    *_both("patch_embedding.compression.linear_out", "embed_proj.2", weight="columns"),
    *_both("patch_embedding.compression.norm", "embed_proj.3"),
    *_backbone("transformer"),
    *_both("head.input.noise_embd", "mlp_generator.noise_embd"),
    *_both("head.input.hidden_embd", "mlp_generator.hidden_embd"),
    *_both("head.input.norm_noise", "mlp_generator.norm_noise"),
    *_both("head.input.norm_hidden", "mlp_generator.norm_hidden"),
    *_both(f"{_BLOCK}.in_ln", f"{_OFFICIAL_BLOCK}.in_ln"),
    *_both(f"{_BLOCK}.linear_in", f"{_OFFICIAL_BLOCK}.linears.0"),
    *_both(f"{_BLOCK}.linear_mid", f"{_OFFICIAL_BLOCK}.linears.2"),
    *_both(f"{_BLOCK}.linear_gate_up", f"{_OFFICIAL_BLOCK}.linears.4"),
    *_both(f"{_BLOCK}.down_proj", f"{_OFFICIAL_BLOCK}.down_proj"),
    *_both("head.output.in_ln", "mlp_generator.final_layer.in_ln"),
    *_both("head.output.linear_in", "mlp_generator.final_layer.linears.0"),
    *_both("head.output.linear_out", "mlp_generator.final_layer.linears.2"),
    # The diffusion and the flow-matching head are one network.
    *_both("head.input.time_in", f"{_DENOISER}.time_embed.mlp.0"),
    *_both("head.input.time_out", f"{_DENOISER}.time_embed.mlp.2"),
    *_both("head.input.cond_embd", f"{_DENOISER}.cond_embed"),
    *_both("head.input.input_proj", f"{_DENOISER}.input_proj"),
    *_both(f"{_BLOCK}.norm", f"{_DENOISER_BLOCK}.in_ln"),
    *_both(f"{_BLOCK}.mlp_in", f"{_DENOISER_BLOCK}.mlp.0"),
    *_both(f"{_BLOCK}.mlp_out", f"{_DENOISER_BLOCK}.mlp.2"),
    *_both(f"{_BLOCK}.modulation", f"{_DENOISER_BLOCK}.adaLN_modulation.1"),
    *_both("head.output.modulation", f"{_DENOISER}.final_layer.adaLN_modulation.1"),
    *_both("head.output.linear", f"{_DENOISER}.final_layer.linear"),
)

AR_ENTRIES: tuple[Entry, ...] = (
    Entry("embedding.tokens.weight", ("model.embed_tokens.weight",), cut="rows"),
    *_backbone("model"),
    Entry("output.weight", ("lm_head.weight",), cut="rows"),
)


def entry_of(name: str, entries: tuple[Entry, ...] = CALM_ENTRIES) -> tuple[Entry, tuple[str, ...]]:
    """The entry of one of our weights and its official names; `entries` are the model's.

    Raises:
        KeyError: for a name that the table does not know.
    """
    for entry in entries:
        match = re.fullmatch(re.escape(entry.ours).replace(r"\{i\}", r"(\d+)"), name)
        if match:
            number = match.group(1) if match.groups() else ""
            return entry, tuple(official.replace("{i}", number) for official in entry.official)
    raise KeyError(name)


def join(parts: list[Tensor], how: Join, config: BackboneConfig) -> Tensor:
    """Official matrices joined to ours."""
    if how == "same":
        return parts[0]
    if how == "stack":
        return torch.cat(parts)
    groups = config.num_query_groups or config.num_attention_heads
    return torch.cat([part.unflatten(0, (groups, -1)) for part in parts], dim=1).flatten(0, 1)


def split(weight: Tensor, how: Join, config: BackboneConfig) -> list[Tensor]:
    """The inverse of `join`; works on gradients as well."""
    if how == "same":
        return [weight]
    if how == "stack":
        return list(weight.chunk(2))
    groups, heads = config.num_query_groups or config.num_attention_heads, config.num_attention_heads
    head_size = config.hidden_size // heads
    sizes = [heads // groups * head_size, head_size, head_size]
    return [part.flatten(0, 1) for part in weight.unflatten(0, (groups, -1)).split(sizes, dim=1)]
