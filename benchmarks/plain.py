"""Plain transcriptions of the published formulas: the baselines of the benchmarks.

Every pair of vectors is a difference in memory, hidden states are repeated for every sample, all logits are there at
once. Weights have their official names and shapes.
"""

import random
from collections import Counter
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from calm_megatron.config.schema import CalmConfig
from calm_megatron.model.autoencoder import Autoencoder
from calm_megatron.model.calm import Calm
from calm_megatron.model.names import entry_of, split

Weights = Mapping[str, Tensor]


def energy_score(samples_NRZ: Tensor, mean_RZ: Tensor, log_std_RZ: Tensor, noise_MRZ: Tensor) -> Tensor:
    """Score (R,) for beta = 1."""
    targets_MRZ = mean_RZ + noise_MRZ * log_std_RZ.exp()
    count = len(samples_NRZ)
    # The diagonal, where a norm has no derivative, gets torch's zero.
    among_NNR = torch.linalg.vector_norm(samples_NRZ.unsqueeze(1) - samples_NRZ.unsqueeze(0), dim=-1)
    to_targets_NMR = torch.linalg.vector_norm(samples_NRZ.unsqueeze(1) - targets_MRZ.unsqueeze(0), dim=-1)
    spread_R, distance_R = among_NNR.sum(dim=(0, 1)) / (count * (count - 1)), to_targets_NMR.mean(dim=(0, 1))
    score_R: Tensor = spread_R - 2 * distance_R
    return score_R


def official_weights(model: Calm) -> dict[str, Tensor]:
    """Copies of a model's weights as the official code has them."""
    weights: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():
        entry, names = entry_of(name)
        parts = split(weight.detach(), entry.join, model.config)
        weights |= {official: part.clone().requires_grad_() for official, part in zip(names, parts, strict=True)}
    return weights


def hidden_states(weights: Weights, config: CalmConfig, ids_BT: Tensor) -> Tensor:
    """(B, P, H): patch embedding and a Llama of one layer after the other."""
    embedded = F.embedding(ids_BT, weights["transformer.embed_tokens.weight"])
    hidden = embedded.view(len(ids_BT), -1, config.patch_size * config.hidden_size)
    hidden = linear(weights, "embed_proj.2", F.silu(linear(weights, "embed_proj.0", hidden)))
    hidden = layer_norm(weights, "embed_proj.3", hidden)
    for number in range(config.num_layers):
        name = f"transformer.layers.{number}"
        hidden = hidden + attention(
            weights, f"{name}.self_attn", config, rms_norm(weights, f"{name}.input_layernorm", config, hidden)
        )
        inner = rms_norm(weights, f"{name}.post_attention_layernorm", config, hidden)
        gate, up = (F.linear(inner, weights[f"{name}.mlp.{part}_proj.weight"]) for part in ("gate", "up"))
        hidden = hidden + F.linear(F.silu(gate) * up, weights[f"{name}.mlp.down_proj.weight"])
    return rms_norm(weights, "transformer.norm", config, hidden)


def attention(weights: Weights, name: str, config: CalmConfig, hidden_BPH: Tensor) -> Tensor:
    """Causal, with rotary positions."""
    B, P, _ = hidden_BPH.shape
    query, key, value = (
        F.linear(hidden_BPH, weights[f"{name}.{part}_proj.weight"])
        .view(B, P, config.num_attention_heads, -1)
        .transpose(1, 2)
        for part in "qkv"
    )
    size = query.shape[-1]
    angles = torch.arange(P)[:, None] * config.rotary_base ** -(torch.arange(0, size, 2) / size)
    cosine, sine = (torch.cat([part, part], dim=-1) for part in (angles.cos(), angles.sin()))
    query, key = (part * cosine + rotated(part) * sine for part in (query, key))
    output = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    return F.linear(output.transpose(1, 2).reshape(B, P, -1), weights[f"{name}.o_proj.weight"])


def rotated(part: Tensor) -> Tensor:
    """Each pair of halves turned by a right angle."""
    first, second = part.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def rms_norm(weights: Weights, name: str, config: CalmConfig, hidden: Tensor) -> Tensor:
    """Written out, as Llama's published code has it."""
    scale = torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + config.layernorm_epsilon)
    return weights[f"{name}.weight"] * (hidden * scale)


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    """With a bias."""
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def layer_norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    """With weight and bias."""
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)


def samples(weights: Weights, blocks: int, hidden_RH: Tensor, noise_NRn: Tensor) -> Tensor:
    """The energy head on hidden states that are repeated for every sample, (N, R, Z)."""
    name = "mlp_generator"
    hidden_NRH = hidden_RH.expand(len(noise_NRn), -1, -1).contiguous()
    x = layer_norm(weights, f"{name}.norm_noise", linear(weights, f"{name}.noise_embd", noise_NRn))
    y = layer_norm(weights, f"{name}.norm_hidden", linear(weights, f"{name}.hidden_embd", hidden_NRH))
    for number in range(blocks):
        block = f"{name}.mlp_blocks.{number}"
        inner = torch.cat([layer_norm(weights, f"{block}.in_ln", x), y], dim=-1)
        inner = F.silu(linear(weights, f"{block}.linears.0", inner))
        inner = F.silu(linear(weights, f"{block}.linears.2", inner))
        gate, up = linear(weights, f"{block}.linears.4", inner).chunk(2, dim=-1)
        x = x + linear(weights, f"{block}.down_proj", F.silu(gate) * up)
    last = f"{name}.final_layer"
    return linear(
        weights,
        f"{last}.linears.2",
        F.silu(linear(weights, f"{last}.linears.0", layer_norm(weights, f"{last}.in_ln", x))),
    )


def autoencoder_loss(model: Autoencoder, latent_RZ: Tensor, ids_RK: Tensor) -> Tensor:
    """Cross-entropy from all logits."""
    return F.cross_entropy(model.logits(latent_RZ).flatten(0, 1), ids_RK.flatten())


def chosen_patches(patches_RNK: Tensor, dice: random.Random) -> list[tuple[int, ...]]:
    """The batch approximation at T = 1/2, in Python: one patch for each row of a pool."""
    chosen = []
    for row_NK in patches_RNK:
        counts = Counter(tuple(int(token) for token in patch_K) for patch_K in row_NK)
        twice = {patch: count * (count - 1) // 2 for patch, count in counts.items() if count > 1} or dict(counts)
        chosen.append(dice.choices(list(twice), weights=list(twice.values()))[0])
    return chosen
