"""What an official checkpoint holds: names and shapes of its weights, from our config alone, and ours made of them.

The official code is github.com/shaochenze/calm; the baseline's weights are those of a Hugging Face Llama. The names are
joined to ours by the table in names.py; the autoencoder's are ours as they are.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from calm_megatron.config.schema import (
    ArConfig,
    AutoencoderConfig,
    BackboneConfig,
    CalmConfig,
    EnergyHeadConfig,
    FlowHeadConfig,
    ModelConfig,
)
from calm_megatron.model.heads.denoiser import TIME_FEATURES
from calm_megatron.model.names import AR_ENTRIES, CALM_ENTRIES, Join, join, split

Shapes = dict[str, tuple[int, ...]]

AUTOENCODER_PREFIX = "ae_model."
"""Of the autoencoder's weights within an official CALM."""
TIED = "decoder.lm_head_weight"
"""The autoencoder's output matrix, of which the official code may save a copy beside `TABLE`."""
TABLE = "encoder.embed_tokens.weight"
_HEAD, _HEAD_COPY = "mlp_generator.", "generative_head."


@dataclass(frozen=True)
class OfficialWeight:
    """One weight of ours and the official ones that it is made of."""

    name: str
    join: Join
    shapes: Shapes
    """Of the official weights, in the order in which they are joined."""

    def shape(self) -> tuple[int, ...]:
        """Of ours."""
        first, *others = self.shapes.values()
        return (first[0] + sum(other[0] for other in others), *first[1:])

    def of(self, official: list[Tensor], config: ModelConfig) -> Tensor:
        """Ours from the official ones."""
        return join(official, self.join, config) if isinstance(config, BackboneConfig) else official[0]

    def parts(self, ours: Tensor, config: ModelConfig) -> dict[str, Tensor]:
        """The official ones from ours."""
        if not isinstance(config, BackboneConfig):
            return {self.name: ours}
        return dict(zip(self.shapes, split(ours, self.join, config), strict=True))


def official_weights(config: ModelConfig) -> tuple[OfficialWeight, ...]:
    """All weights of a model, without copies; those of CALM without its autoencoder's."""
    shapes = official_shapes(config)
    if isinstance(config, AutoencoderConfig):
        return tuple(OfficialWeight(name, "same", {name: shape}) for name, shape in shapes.items())
    found = []
    for entry in AR_ENTRIES if isinstance(config, ArConfig) else CALM_ENTRIES:
        pattern = re.escape(entry.official[0]).replace(r"\{i\}", r"(\d+)")
        for match in filter(None, (re.fullmatch(pattern, name) for name in shapes)):
            number = match.group(1) if match.groups() else ""
            names = [name.replace("{i}", number) for name in entry.official]
            ours = entry.ours.replace("{i}", number)
            found.append(OfficialWeight(ours, entry.join, {name: shapes[name] for name in names}))
    return tuple(found)


def copies(name: str) -> tuple[str, ...]:
    """Under which other names the official code saves one of its weights a second time."""
    if name.startswith(_HEAD):
        return (name.replace(_HEAD, _HEAD_COPY, 1),)
    return (name.removesuffix(TABLE) + TIED,) if name in (TABLE, AUTOENCODER_PREFIX + TABLE) else ()


def official_shapes(config: ModelConfig) -> Shapes:
    """Name and shape of each official weight, without copies; those of CALM without its autoencoder's."""
    if isinstance(config, AutoencoderConfig):
        return dict(_autoencoder(config))
    if isinstance(config, ArConfig):
        table = (config.vocab_size, config.hidden_size)
        return {"model.embed_tokens.weight": table, **dict(_backbone("model", config)), "lm_head.weight": table}
    head = _energy_head(config) if isinstance(config.head, EnergyHeadConfig) else _denoiser(config)
    H = config.hidden_size
    return {
        "transformer.embed_tokens.weight": (config.vocab_size, H),
        **dict(_linear("embed_proj.0", 2 * H, config.patch_size * H)),
        **dict(_linear("embed_proj.2", H, 2 * H)),
        **dict(_norm("embed_proj.3", H)),
        **dict(_backbone("transformer", config)),
        **dict(head),
    }


Named = Iterator[tuple[str, tuple[int, ...]]]


def _linear(name: str, outputs: int, inputs: int) -> Named:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, size: int) -> Named:
    yield f"{name}.weight", (size,)
    yield f"{name}.bias", (size,)


def _gated_mlp(name: str, hidden: int, inner: int) -> Named:
    yield f"{name}.gate_proj.weight", (inner, hidden)
    yield f"{name}.up_proj.weight", (inner, hidden)
    yield f"{name}.down_proj.weight", (hidden, inner)


def _autoencoder(config: AutoencoderConfig) -> Named:
    H, K, Z = config.hidden_size, config.patch_size, config.latent_size
    yield TABLE, (config.vocab_size, H)
    yield from _linear("encoder.squeeze_layer", H, K * H)
    yield from _linear("encoder.hidden_to_latent", 2 * Z, H)
    yield from _linear("decoder.latent_to_hidden", H, Z)
    yield from _linear("decoder.expand_layer", K * H, H)
    for side, layers in (("encoder", config.num_encoder_layers), ("decoder", config.num_decoder_layers)):
        yield f"{side}.norm.weight", (H,)
        for number in range(layers):
            layer = f"{side}.{side}_layers.{number}"
            yield from _gated_mlp(f"{layer}.mlp", H, config.ffn_hidden_size)
            yield f"{layer}.layernorm.weight", (H,)


def _backbone(prefix: str, config: BackboneConfig) -> Named:
    H, heads = config.hidden_size, config.num_attention_heads
    shared = H // heads * (config.num_query_groups or heads)
    yield f"{prefix}.norm.weight", (H,)
    for number in range(config.num_layers):
        layer = f"{prefix}.layers.{number}"
        for name, rows in (("q", H), ("k", shared), ("v", shared), ("o", H)):
            yield f"{layer}.self_attn.{name}_proj.weight", (rows, H)
        yield from _gated_mlp(f"{layer}.mlp", H, config.ffn_hidden_size)
        yield f"{layer}.input_layernorm.weight", (H,)
        yield f"{layer}.post_attention_layernorm.weight", (H,)


def _energy_head(config: CalmConfig) -> Named:
    H, Z = config.hidden_size, config.latent_size
    assert isinstance(config.head, EnergyHeadConfig)
    yield from _linear(f"{_HEAD}noise_embd", H, config.head.noise_size)
    yield from _linear(f"{_HEAD}hidden_embd", H, H)
    yield from _norm(f"{_HEAD}norm_hidden", H)
    yield from _norm(f"{_HEAD}norm_noise", H)
    for number in range(config.head.num_layers):
        block = f"{_HEAD}mlp_blocks.{number}"
        yield from _norm(f"{block}.in_ln", H)
        yield from _linear(f"{block}.linears.0", H, 2 * H)
        yield from _linear(f"{block}.linears.2", H, H)
        yield from _linear(f"{block}.linears.4", 2 * H, H)
        yield from _linear(f"{block}.down_proj", H, H)
    yield from _norm(f"{_HEAD}final_layer.in_ln", H)
    yield from _linear(f"{_HEAD}final_layer.linears.0", H, H)
    yield from _linear(f"{_HEAD}final_layer.linears.2", Z, H)


def _denoiser(config: CalmConfig) -> Named:
    H, Z, net = config.hidden_size, config.latent_size, f"{_HEAD_COPY}net"
    yield from _linear(f"{net}.time_embed.mlp.0", H, TIME_FEATURES)
    yield from _linear(f"{net}.time_embed.mlp.2", H, H)
    yield from _linear(f"{net}.cond_embed", H, H)
    yield from _linear(f"{net}.input_proj", H, Z)
    for number in range(config.head.num_layers):
        block = f"{net}.res_blocks.{number}"
        yield from _norm(f"{block}.in_ln", H)
        yield from _linear(f"{block}.mlp.0", H, H)
        yield from _linear(f"{block}.mlp.2", H, H)
        yield from _linear(f"{block}.adaLN_modulation.1", 3 * H, H)
    yield from _linear(f"{net}.final_layer.linear", Z if isinstance(config.head, FlowHeadConfig) else 2 * Z, H)
    yield from _linear(f"{net}.final_layer.adaLN_modulation.1", 2 * H, H)
