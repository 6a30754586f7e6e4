"""Settings that contradict each other: each is refused with the reason and values that work."""

from typing import Any

import pytest

from calm_megatron.config.checks import nearest_multiples
from calm_megatron.config.errors import UserError
from calm_megatron.config.files import parse_run, to_tree
from calm_megatron.config.schema import RunConfig

COMMON = {"run": {"directory": "r"}, "data": {"data_path": "corpus", "seq_length": 64}, "train": {"train_iters": 100}}
MODELS = {
    "ae": {"type": "autoencoder", "vocab_size": 512},
    "calm": {
        "type": "calm",
        "autoencoder": "runs/ae",
        "vocab_size": 512,
        "num_layers": 2,
        "hidden_size": 64,
        "ffn_hidden_size": 128,
        "num_attention_heads": 4,
    },
}
MODELS["ar"] = {name: value for name, value in MODELS["calm"].items() if name != "autoencoder"} | {"type": "ar"}


def run(model: str, settings: dict[str, Any]) -> RunConfig:
    tree: dict[str, Any] = {name: dict(section) for name, section in COMMON.items()} | {"model": dict(MODELS[model])}
    for name, value in settings.items():
        *sections, key = name.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return parse_run(tree, "a test")


CONTRADICTIONS = [
    ("ae", {"evaluation.rollout_positions": 4}, ["no effect on an autoencoder"]),
    ("calm", {"evaluation.rollout_positions": 4}, ["model.patch_size = 4: a patch holds all four tokens"]),
    (
        "calm",
        {"evaluation.rollout_positions": 4, "model.patch_size": 2, "data.seq_length": 6},
        ["sequences of 4 patches or more: data.seq_length = 8"],
    ),
    (
        "ar",
        {"evaluation.rollout_positions": 4, "parallel.pipeline_model_parallel_size": 2},
        ["needs the tokens of the step before at the first stage", "set it to 0"],
    ),
    ("calm", {"parallel.sequence_parallel": True}, ["parallel.sequence_parallel needs tensor ranks"]),
    ("ae", {"parallel.tensor_model_parallel_size": 2}, ["the autoencoder is trained by data-parallel ranks only"]),
    (
        "calm",
        {"parallel.tensor_model_parallel_size": 4, "model.ffn_hidden_size": 130},
        ["does not divide model.ffn_hidden_size = 130", "nearest that work: 2 or 1"],
    ),
    (
        "calm",
        {"parallel.tensor_model_parallel_size": 4, "model.num_query_groups": 2},
        ["does not divide model.num_query_groups = 2", "nearest that work: 2 or 1"],
    ),
    (
        "calm",
        {"parallel.tensor_model_parallel_size": 4, "parallel.sequence_parallel": True, "data.seq_length": 72},
        ["does not divide data.seq_length / model.patch_size = 18", "nearest that work: 2 or 1"],
    ),
    ("ae", {"parallel.pipeline_model_parallel_size": 2}, ["the autoencoder is trained by data-parallel ranks only"]),
    (
        "calm",
        {"parallel.pipeline_model_parallel_size": 2, "parallel.zero_stage": 2},
        ["parallel.pipeline_model_parallel_size = 2 with parallel.zero_stage = 2", "use parallel.zero_stage=1"],
    ),
    (
        "calm",
        {"parallel.pipeline_model_parallel_size": 11},
        ["the model has 10 layers, embedding and head included", "set it to 10 or fewer"],
    ),
    ("ae", {"train.precision": "fp16"}, ["would sum gradients in fp16", "use parallel.zero_stage=1"]),
    ("ae", {"model.num_encoder_layers": 3}, ["model.num_encoder_layers = 3", "nearest that work: 2 or 4"]),
    ("ae", {"model.num_decoder_layers": 1}, ["model.num_decoder_layers = 1", "nearest that work: 2"]),
    (
        "calm",
        {"model.num_attention_heads": 6},
        ["model.hidden_size = 64 is no multiple of model.num_attention_heads = 6", "nearest head counts: 4 or 8"],
    ),
    ("calm", {"model.num_attention_heads": 64}, ["even head size; 64 / 64 is odd"]),
    (
        "calm",
        {"model.num_query_groups": 3},
        ["does not divide model.num_attention_heads = 4", "nearest that work: 2 or 4"],
    ),
    ("calm", {"model.num_query_groups": 8}, ["does not divide model.num_attention_heads = 4"]),
    ("ae", {"data.seq_length": 65}, ["no multiple of model.patch_size = 4", "nearest that work: 64 or 68"]),
    ("ae", {"data.seq_length": 3}, ["nearest that work: 4"]),
    ("calm", {"data.seq_length": 4}, ["data.seq_length = 4", "at least two"]),
    ("ae", {"data.train_data_path": "x", "data.valid_data_path": "y"}, ["exclude each other"]),
    ("ae", {"data.data_path": None}, ["set data.data_path", "or data.train_data_path"]),
    ("ae", {"data.data_path": None, "data.train_shards": "x"}, ["data.train_shards needs data.valid_data_path"]),
    ("ae", {"data.blend_weights": [1.0]}, ["no effect on a single data set"]),
    (
        "ae",
        {"data.data_path": ["x", "y"], "data.blend_weights": [1.0, 2.0], "data.blend_epochs": [1.0, 2.0]},
        ["both say how much", "give one"],
    ),
    (
        "ae",
        {"data.data_path": None, "data.train_data_path": "x"},
        ["data.train_data_path needs data.valid_data_path beside it"],
    ),
    ("ae", {"data.split": "90,10"}, ["data.split = '90,10' must be three shares", "98,1,1"]),
    ("ae", {"data.split": "a,b,c"}, ["must be three shares"]),
    ("ae", {"data.split": "90,-1,1"}, ["must be three shares"]),
    ("ae", {"data.split": "nan,1,1"}, ["must be three shares"]),
    ("ae", {"data.split": "inf,1,1"}, ["must be three shares"]),
    ("ae", {"data.split": "0,0,0"}, ["must be three shares"]),
    ("ae", {"data.split": "0,1,1"}, ["leaves nothing for training or validation"]),
    ("ae", {"data.split": "99,0,1"}, ["leaves nothing for training or validation"]),
    (
        "ae",
        {"train.global_batch_size": 10, "train.micro_batch_size": 4},
        ["global_batch_size = 10 is no multiple of train.micro_batch_size = 4", "nearest that work: 8 or 12"],
    ),
    (
        "ae",
        {"train.global_batch_size": 4, "train.rampup_batch_size": [8, 2, 100]},
        ["train.rampup_batch_size starts at 8, above global_batch_size = 4"],
    ),
    (
        "ae",
        {"train.global_batch_size": 9, "train.rampup_batch_size": [2, 4, 100]},
        ["[2, 4, 100] does not reach global_batch_size = 9 in steps of 4"],
    ),
    (
        "ae",
        {"optimizer.min_lr": 1.0, "optimizer.lr_decay_style": "linear"},
        ["min_lr = 1.0 is above optimizer.lr = 0.0003"],
    ),
    ("ae", {"optimizer.min_lr": 1e-5}, ["optimizer.min_lr has no effect with lr_decay_style = constant"]),
    ("ae", {"optimizer.lr_decay_iters": 5}, ["optimizer.lr_decay_iters has no effect with lr_decay_style = constant"]),
    ("ae", {"optimizer.lr_wsd_decay_iters": 5}, ["lr_wsd_decay_iters has no effect with lr_decay_style = constant"]),
    (
        "ae",
        {"optimizer.lr_wsd_decay_iters": 5, "optimizer.lr_decay_style": "cosine"},
        ["lr_wsd_decay_iters has no effect with lr_decay_style = cosine"],
    ),
    (
        "ae",
        {"optimizer.lr_wsd_decay_style": "cosine", "optimizer.lr_decay_style": "linear"},
        ["lr_wsd_decay_style has no effect with lr_decay_style = linear"],
    ),
    (
        "ae",
        {"optimizer.lr_warmup_iters": 100, "optimizer.lr_decay_style": "cosine"},
        ["lr_warmup_iters = 100 must be below the 100 steps"],
    ),
    (
        "ae",
        {"optimizer.lr_warmup_iters": 50, "optimizer.lr_decay_iters": 40, "optimizer.lr_decay_style": "cosine"},
        ["lr_warmup_iters = 50 must be below the 40 steps"],
    ),
    ("ae", {"optimizer.lr_decay_style": "WSD"}, ["WSD needs optimizer.lr_wsd_decay_iters"]),
    (
        "ae",
        {"optimizer.lr_decay_style": "WSD", "optimizer.lr_wsd_decay_iters": 60, "optimizer.lr_warmup_iters": 50},
        ["warm-up (50) and decay (60) are longer than the 100 steps"],
    ),
    (
        "ae",
        {
            "optimizer.lr_decay_style": "WSD",
            "optimizer.lr_wsd_decay_iters": 60,
            "optimizer.lr_wsd_decay_style": "exponential",
        },
        ["exponential needs optimizer.min_lr above 0"],
    ),
    ("calm", {"evaluation.brier_pairs": 5}, ["brier_pairs = 5 needs 10 samples, model.head.num_samples = 8"]),
    ("calm", {"evaluation.sampling_steps": 10}, ["no effect with an energy head, which samples in one step"]),
    ("ae", {"evaluation.sampling_steps": 10}, ["no effect with a model of type 'autoencoder'"]),
    (
        "calm",
        {"model.head.type": "diffusion", "evaluation.sampling_steps": 1},
        ["evaluation.sampling_steps = 1: a diffusion head samples in 2 to 1000 steps"],
    ),
    (
        "calm",
        {"model.head.type": "flow", "evaluation.sampling_steps": 1001},
        ["evaluation.sampling_steps = 1001: a flow head samples in 1 to 1000 steps"],
    ),
    ("ae", {"train.precision": "bf16"}, ["would sum gradients in bf16", "use parallel.zero_stage=1"]),
]


@pytest.mark.parametrize(("model", "settings", "words"), CONTRADICTIONS)
def test_a_contradiction_is_refused_with_what_works(model: str, settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        run(model, settings)
    assert caught.value.where == "the config of this run"
    assert caught.value.what.count("\n") == 0, "one contradiction, one line"
    for word in words:
        assert word in caught.value.what


WORKING = [
    ("ae", {"model.num_encoder_layers": 4}),
    ("calm", {"model.num_attention_heads": 8, "model.num_query_groups": 2}),
    ("calm", {"data.seq_length": 8}),
    ("ae", {"data.seq_length": 4}),
    ("ae", {"data.data_path": None, "data.train_data_path": "x", "data.valid_data_path": "y"}),
    ("ae", {"data.data_path": None, "data.train_shards": "x", "data.valid_data_path": "y"}),
    ("ae", {"data.data_path": ["x", "y"], "data.blend_epochs": [1.0, 2.0]}),
    ("ae", {"data.split": "90,10,0"}),
    ("ae", {"train.global_batch_size": 8, "train.rampup_batch_size": [2, 2, 100]}),
    ("ae", {"optimizer.lr_warmup_iters": 1000}),  # constant: a warm-up that the run does not finish
    ("ae", {"optimizer.lr_decay_style": "WSD", "optimizer.lr_wsd_decay_iters": 50, "optimizer.lr_warmup_iters": 50}),
    ("calm", {"evaluation.brier_pairs": 4}),
    ("ae", {"train.precision": "bf16", "parallel.zero_stage": 1}),
    ("calm", {"parallel.pipeline_model_parallel_size": 10, "parallel.zero_stage": 1}),
]


@pytest.mark.parametrize(("model", "settings"), WORKING)
def test_what_the_messages_advise_works(model: str, settings: dict[str, Any]) -> None:
    written = to_tree(run(model, settings))
    for name, value in settings.items():
        section, key = name.split(".")
        assert written[section][key] == value


def test_all_contradictions_are_told_at_once() -> None:
    with pytest.raises(UserError) as caught:
        run("ae", {"data.seq_length": 65, "train.global_batch_size": 3, "train.micro_batch_size": 2})
    assert len(caught.value.what.splitlines()) == 2


def test_nearest_multiples() -> None:
    assert nearest_multiples(10, 4) == "8 or 12"
    assert nearest_multiples(3, 4) == "4"
