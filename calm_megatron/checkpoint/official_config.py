"""`config.json` of an official checkpoint and our config of the same model: each made of the other, strictly.

The official code loses `model_type` when it saves, so the kind of a model is told by `architectures`, or else by the
names of its weights.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import (
    ArConfig,
    AutoencoderConfig,
    CalmConfig,
    DiffusionHeadConfig,
    EnergyHeadConfig,
    FlowHeadConfig,
    ModelConfig,
)

Facts = dict[str, Any]

MODELLING_FILE = "modeling_calm.py"
ARCHITECTURES = {
    "Autoencoder": "autoencoder",
    "EnergyTransformer": "energy",
    "DiffusionTransformer": "diffusion",
    "FlowTransformer": "flow",
    "LlamaForCausalLM": "ar",
}
"""Kind of a model by its official class."""
CLASSES = {kind: name for name, kind in ARCHITECTURES.items()}
_HEADS: dict[str, type[EnergyHeadConfig | DiffusionHeadConfig | FlowHeadConfig]] = {
    "energy": EnergyHeadConfig,
    "diffusion": DiffusionHeadConfig,
    "flow": FlowHeadConfig,
}
_CLUES = {
    "encoder.squeeze_layer.weight": "autoencoder",
    "mlp_generator.noise_embd.weight": "energy",
    "generative_head.noise_embd.weight": "energy",
    "model.embed_tokens.weight": "ar",
}
_LAST = "generative_head.net.final_layer.linear.weight"

# Our names of what both call differently.
_SIZES = {"vocab_size": "vocab_size", "hidden_size": "hidden_size", "ffn_hidden_size": "intermediate_size"}
_COMMON = _SIZES | {"layernorm_epsilon": "rms_norm_eps", "init_method_std": "initializer_range"}
_PATCHES = {"patch_size": "patch_size", "latent_size": "latent_size"}
_AUTOENCODER = {
    **_COMMON,
    **_PATCHES,
    "num_encoder_layers": "num_encoder_layers",
    "num_decoder_layers": "num_decoder_layers",
    "dropout": "ae_dropout",
    "kl_clamp": "kl_clamp",
    "kl_weight": "kl_weight",
}
_BACKBONE = {**_COMMON, "num_layers": "num_hidden_layers", "num_attention_heads": "num_attention_heads"}
_HEAD = {"num_layers": "num_mlp_layers", "num_samples": "num_samples"}
_ENERGY = {"noise_size": "noise_size", "beta": "beta"}
_OURS_ALONE = ("num_target_samples", "num_sampling_steps")
"""Of a head: settings that the official code has no field for."""
_UNSUPPORTED = {
    "hidden_act": "silu",
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
}
"""Fields that would change the model, and the value that changes nothing."""


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokenizer's special tokens; none where it has none."""

    bos: int | None = None
    eos: int | None = None
    pad: int | None = None


def kind_of(official: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str) -> str:
    """What kind of model it is: a value of `ARCHITECTURES`.

    Raises:
        UserError: neither the config nor the weights tell.
    """
    named = official.get("architectures")
    if isinstance(named, list) and named:
        if named[0] in ARCHITECTURES:
            return ARCHITECTURES[named[0]]
        raise UserError(
            f"a model of the architecture '{named[0]}' is no official CALM", where, f"give a {', '.join(ARCHITECTURES)}"
        )
    for name, kind in _CLUES.items():
        if name in shapes:
            return kind
    rows = shapes.get(_LAST, (0,))[0]
    for factor, kind in ((1, "flow"), (2, "diffusion")):
        if rows and rows == factor * official.get("latent_size", 0):
            return kind
    raise UserError("neither its config nor its weights tell what model this is", where, "give `architectures`")


def autoencoder_config(official: Mapping[str, Any], where: str) -> AutoencoderConfig:
    """Our config of an official autoencoder.

    Raises:
        UserError: naming every field that is missing, or that says what no model of ours does.
    """
    _demand(official, _AUTOENCODER.values(), where)
    found = {ours: official[theirs] for ours, theirs in _AUTOENCODER.items()}
    # The official code rounds in training without being told to; ours tells in its exports whether it did.
    rounds = official.get("round_embedding_to_bf16", True)
    built: AutoencoderConfig = _built(
        AutoencoderConfig, {**found, "round_embedding_to_bf16": rounds}, _AUTOENCODER, where
    )
    return built


def backbone_config(official: Mapping[str, Any], kind: str, autoencoder: str, where: str) -> CalmConfig | ArConfig:
    """Our config of an official CALM or of a Llama; errors as in `autoencoder_config`.

    Args:
        official: content of `config.json`.
        kind: a value of `ARCHITECTURES`.
        autoencoder: of a CALM: where its autoencoder will be.
        where: names the file in messages.
    """
    of_head = {} if kind == "ar" else _HEAD | (_ENERGY if kind == "energy" else {})
    of_model = _BACKBONE | ({} if kind == "ar" else _PATCHES)
    _demand(official, [*of_model.values(), *of_head.values()], where)
    fields = {ours: official[theirs] for ours, theirs in of_model.items()}
    fields |= {
        "num_query_groups": official.get("num_key_value_heads"),
        "rotary_base": _rotary_base(official, where),
    }
    if kind == "ar":
        baseline: ArConfig = _built(ArConfig, fields, of_model, where)
        return baseline
    settings = {ours: official[theirs] for ours, theirs in of_head.items()}
    settings |= {name: official[name] for name in _OURS_ALONE if name in official and hasattr(_HEADS[kind], name)}
    head = _built(_HEADS[kind], settings, of_head, where)
    fields |= {"pad_token_id": official.get("pad_token_id"), "autoencoder": autoencoder}
    calm: CalmConfig = _built(CalmConfig, fields, of_model, where)
    return replace(calm, head=head)


def official_config(model: ModelConfig, tokens: SpecialTokens, positions: int, dtype: str) -> Facts:
    """`config.json` of a model of ours.

    Args:
        model: the model; of a CALM, its autoencoder's config goes into the field `ae_config` afterwards.
        tokens: of its tokenizer.
        positions: the longest text, in patches, or in tokens where the model knows no patches.
        dtype: of the weights, such as "float32".

    Raises:
        UserError: the official code has no such model.
    """
    common = {
        "bos_token_id": tokens.bos,
        "eos_token_id": tokens.eos,
        "pad_token_id": tokens.pad,
        "hidden_act": "silu",
        "max_position_embeddings": positions,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
    }
    if isinstance(model, AutoencoderConfig):
        fields = {theirs: getattr(model, ours) for ours, theirs in _AUTOENCODER.items()}
        rounds = {"round_embedding_to_bf16": model.round_embedding_to_bf16}
        return {"architectures": ["Autoencoder"], **with_code(common | fields | rounds, "autoencoder")}
    fields = {theirs: getattr(model, ours) for ours, theirs in _BACKBONE.items()}
    fields |= {
        "num_key_value_heads": model.num_query_groups or model.num_attention_heads,
        "rope_theta": model.rotary_base,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_cache": True,
    }
    if isinstance(model, ArConfig):
        return {"architectures": [CLASSES["ar"]], "model_type": "llama", **common, **fields}
    return _official_calm(model, common | fields)


def _official_calm(model: CalmConfig, fields: Facts) -> Facts:
    if model.input != "tokens":
        raise UserError(
            f"model.input is '{model.input}', and the official format has no such model",
            "the run's config.yaml",
            "only models that read tokens can be given away",
        )
    head = model.head
    fields |= {theirs: getattr(model, ours) for ours, theirs in _PATCHES.items()}
    fields |= {theirs: getattr(head, ours) for ours, theirs in _HEAD.items()}
    energy = head if isinstance(head, EnergyHeadConfig) else EnergyHeadConfig()
    fields |= {theirs: getattr(energy, ours) for ours, theirs in _ENERGY.items()}  # official defaults, if not its own
    fields |= {name: getattr(head, name) for name in _OURS_ALONE if hasattr(head, name)}
    pad = model.pad_token_id
    if pad is not None:
        fields["pad_token_id"] = pad
    return {"architectures": [CLASSES[head.type]], "ae_path": None, **with_code(fields, head.type)}


def with_code(fields: Facts, kind: str) -> Facts:
    """The fields, with those by which transformers finds the modelling file that travels along."""
    module = MODELLING_FILE.removesuffix(".py")
    config, auto = (
        ("AutoencoderConfig", "AutoModel") if kind == "autoencoder" else ("CalmConfig", "AutoModelForCausalLM")
    )
    return {**fields, "auto_map": {"AutoConfig": f"{module}.{config}", auto: f"{module}.{CLASSES[kind]}"}}


def _demand(official: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    problems = [f"{name} is missing" for name in names if name not in official]
    problems += _unsupported(official)
    if problems:
        raise UserError(
            "this config is of no model that can be taken in:\n  " + "\n  ".join(problems),
            where,
            "complete it, if the file is damaged; a model with other parts cannot be taken in",
        )


def _unsupported(official: Mapping[str, Any]) -> Iterator[str]:
    for name, plain in _UNSUPPORTED.items():
        if (value := official.get(name, plain)) != plain:
            yield f"{name} is {value!r}; only {plain!r} is known here"
    rotary = official.get("rope_parameters") or {}
    if rotary.get("rope_type", "default") != "default":
        yield f"rope_parameters asks for {rotary['rope_type']!r}; only 'default' is known here"
    heads, hidden = official.get("num_attention_heads"), official.get("hidden_size")
    size = official.get("head_dim")
    if size is not None and isinstance(heads, int) and isinstance(hidden, int) and size * heads != hidden:
        yield f"head_dim is {size}; only hidden_size / num_attention_heads is known here"


def _rotary_base(official: Mapping[str, Any], where: str) -> Any:
    """`rope_theta`, which newer releases of transformers write as one of `rope_parameters`."""
    found = official.get("rope_theta", (official.get("rope_parameters") or {}).get("rope_theta"))
    if found is None:
        raise UserError(
            "this config is of no model that can be taken in:\n  rope_theta is missing", where, "complete it"
        )
    return found


def _built(cls: type[Any], fields: Facts, names: Mapping[str, str], where: str) -> Any:
    try:
        return TypeAdapter(cls).validate_python(fields)
    except ValidationError as error:
        found = []
        for detail in error.errors():
            name = str(detail["loc"][0]) if detail["loc"] else ""
            found.append(f"{names.get(name, name)} cannot be {detail['input']!r}: {detail['msg']}")
        raise UserError("this config is damaged:\n  " + "\n  ".join(found), where) from None
