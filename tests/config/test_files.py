"""Reading a run: what is accepted, what is refused and in which words, and writing it back."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest

from calm_megatron.config.errors import UserError
from calm_megatron.config.files import load_run, parse_run, setting_names, to_tree, to_yaml
from calm_megatron.config.schema import (
    AutoencoderConfig,
    CalmConfig,
    DiffusionHeadConfig,
    EnergyHeadConfig,
    FlowHeadConfig,
    RunConfig,
)

AUTOENCODER = """
run: {directory: runs/ae}
model: {type: autoencoder, vocab_size: 512}
data: {data_path: corpus, seq_length: 64}
train: {train_iters: 10}
"""
CALM = """
run: {directory: runs/calm}
model:
  type: calm
  autoencoder: runs/ae
  vocab_size: 512
  num_layers: 2
  hidden_size: 64
  ffn_hidden_size: 128
  num_attention_heads: 4
data: {data_path: corpus, seq_length: 64}
train: {train_iters: 10}
"""


FLOW = CALM.replace("  num_layers: 2\n", "  num_layers: 2\n  head: {type: flow}\n")


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """Writes each text to a file a.yaml, b.yaml, ... and loads them with overrides."""

    def load_texts(*texts: str, overrides: tuple[str, ...] = ()) -> RunConfig:
        files = [tmp_path / f"{letter}.yaml" for letter in "abc"[: len(texts)]]
        for file, text in zip(files, texts, strict=True):
            file.write_text(text, encoding="utf-8")
        return load_run(files, overrides)

    return load_texts


def refusal(load: Any, *texts: str, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(UserError) as caught:
        load(*texts, overrides=overrides)
    return str(caught.value)


def test_the_type_of_the_model_decides_its_class(load: Any) -> None:
    assert isinstance(load(AUTOENCODER).model, AutoencoderConfig)
    assert isinstance(load(CALM).model, CalmConfig)


@pytest.mark.parametrize(
    ("head", "kind"), [("energy", EnergyHeadConfig), ("diffusion", DiffusionHeadConfig), ("flow", FlowHeadConfig)]
)
def test_the_type_of_the_head_decides_its_class(load: Any, head: str, kind: type) -> None:
    config = load(FLOW.replace("flow", head))
    assert config.model.head == kind()
    assert load(to_yaml(config)) == config


def test_the_usual_head_is_the_energy_head(load: Any) -> None:
    assert load(CALM).model.head == EnergyHeadConfig()
    assert load(CALM, overrides=("model.head.num_layers=2",)).model.head == EnergyHeadConfig(num_layers=2)


def test_files_that_speak_of_different_things_make_one_run(load: Any) -> None:
    machine = "parallel: {zero_stage: 2}\ntrain: {micro_batch_size: 4, global_batch_size: 8}\noptimizer:\n"
    config = load(AUTOENCODER, machine)
    assert (config.parallel.zero_stage, config.train.micro_batch_size, config.train.train_iters) == (2, 4, 10)


@pytest.mark.parametrize("empty", ["model:\n", "model: {}\n"])
@pytest.mark.parametrize("first", [True, False])
def test_an_empty_section_takes_nothing_back(load: Any, empty: str, first: bool) -> None:
    texts = [empty, AUTOENCODER] if first else [AUTOENCODER, empty]
    assert load(*texts) == load(AUTOENCODER)


def test_the_command_line_overrides_files(load: Any) -> None:
    config = load(CALM, overrides=("train.train_iters=7", "model.head.beta=1.5", "train.rampup_batch_size=null"))
    assert (config.train.train_iters, config.model.head.beta, config.train.rampup_batch_size) == (7, 1.5, None)


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "3.0e-4", "+3e-4", "0.0003", ".0003"])
def test_numbers_are_read_as_in_yaml_1_2(load: Any, text: str) -> None:
    assert load(AUTOENCODER, f"optimizer: {{lr: {text}}}").optimizer.lr == 3e-4
    assert load(AUTOENCODER, overrides=(f"optimizer.lr={text}",)).optimizer.lr == 3e-4


def test_a_whole_number_serves_as_a_float(load: Any) -> None:
    assert load(AUTOENCODER, "optimizer: {weight_decay: 1}").optimizer.weight_decay == 1.0


@pytest.mark.parametrize("text", [AUTOENCODER, CALM])
def test_a_run_written_out_reads_back_equal(load: Any, text: str) -> None:
    config = load(text, "train: {rampup_batch_size: [1, 2, 30], global_batch_size: 3}\noptimizer: {adam_eps: 1e-12}")
    assert load(to_yaml(config)) == config


def test_every_setting_is_written_out(load: Any) -> None:
    written = to_tree(load(CALM))
    for name in setting_names(RunConfig, kinds={"model": "calm", "model.head": "energy"}):
        node = written
        for part in name.split("."):
            assert part in node, name
            node = node[part]


def test_any_text_and_number_survives_the_round_trip(load: Any) -> None:
    dice = random.Random(0)
    config = load(AUTOENCODER)
    tricky = [
        "1e5",
        "5.",
        ".5",
        "1_0",
        "0x1",
        "null",
        "~",
        "yes",
        "2020-01-01",
        "1:30",
        ".inf",
        "a: b",
        "#x",
        " x ",
        "\t",
    ]
    texts = [
        *tricky,
        *("".join(dice.choices("0123456789eE.+-_:# '\"\\\n{}é漢", k=dice.randint(1, 6))) for _ in range(300)),
    ]
    for text in texts:
        changed = dataclasses.replace(
            config,
            run=dataclasses.replace(config.run, directory=text),
            optimizer=dataclasses.replace(config.optimizer, lr=10 ** dice.uniform(-12, 3)),
        )
        assert load(to_yaml(changed)) == changed, text


UNKNOWN = [
    (AUTOENCODER, "optimizer.lrr=1", "there is no setting 'optimizer.lrr'; did you mean 'optimizer.lr'?"),
    (AUTOENCODER, "model.latnt_size=1", "did you mean 'model.latent_size'?"),
    (CALM, "model.head.num_sample=3", "did you mean 'model.head.num_samples'?"),
    (AUTOENCODER, "trian.train_iters=4", "there is no setting 'trian'; did you mean 'train'?"),
    (AUTOENCODER, "train.lr=1e-3", "there is no setting 'train.lr'; did you mean 'optimizer.lr'?"),
    (AUTOENCODER, "optimizer.zzz=1", "'optimizer' knows: adam_beta1, adam_beta2,"),
    (AUTOENCODER, "zzz.zzz=1", "'the run' knows: checkpoint, data, evaluation,"),
    # Settings of the other kind of model, one of which bears the name of a kind.
    (AUTOENCODER, "model.num_layers=2", "for a model of type 'autoencoder'; did you mean 'model.num_encoder_layers'?"),
    (AUTOENCODER, "model.autoencoder=x", "there is no setting 'model.autoencoder' for a model of type 'autoencoder'"),
    # Settings of other heads.
    (
        CALM,
        "model.head.num_sampling_steps=9",
        "'model.head.num_sampling_steps' for a head of type 'energy'; did you mean",
    ),
    (FLOW, "model.head.noise_size=9", "there is no setting 'model.head.noise_size' for a head of type 'flow'"),
    (FLOW, "model.head.beta=1.5", "there is no setting 'model.head.beta' for a head of type 'flow'"),
    (CALM, "model.kl_clamp=0.1", "there is no setting 'model.kl_clamp' for a model of type 'calm'"),
]


@pytest.mark.parametrize(("text", "override", "words"), UNKNOWN)
def test_an_unknown_setting_is_refused_with_the_nearest(load: Any, text: str, override: str, words: str) -> None:
    assert words in refusal(load, text, overrides=(override,))


def test_an_unknown_empty_section_is_refused(load: Any) -> None:
    assert "there is no setting 'optimiser'; did you mean 'optimizer'?" in refusal(load, AUTOENCODER, "optimiser:\n")


def test_another_stray_setting_does_not_blur_the_message(load: Any) -> None:
    message = refusal(load, AUTOENCODER, overrides=("model.autoencoder=x", "model.latnt_size=1"))
    assert "there is no setting 'model.latnt_size' for a model of type 'autoencoder'; did you mean" in message


WRONG_VALUES = [
    (AUTOENCODER, "train.train_iters=true", "'train.train_iters' cannot be True: input should be a valid integer"),
    (AUTOENCODER, 'train.train_iters="8"', "'train.train_iters' cannot be '8': input should be a valid integer"),
    (AUTOENCODER, "train.train_iters=1.5", "'train.train_iters' cannot be 1.5"),
    (AUTOENCODER, "train.train_iters=0", "greater than or equal to 1"),
    (AUTOENCODER, "run.directory=12", "'run.directory' cannot be 12: input should be a valid string"),
    (AUTOENCODER, "data.align_documents=1", "'data.align_documents' cannot be 1"),
    (AUTOENCODER, "optimizer.lr=.inf", "'optimizer.lr' cannot be inf: input should be a finite number"),
    (AUTOENCODER, "optimizer.lr=.nan", "'optimizer.lr' cannot be nan: input should be a finite number"),
    (AUTOENCODER, "optimizer.lr=", "'optimizer.lr' cannot be None"),
    (AUTOENCODER, "parallel.zero_stage=4", "less than or equal to 3"),
    (AUTOENCODER, "model.dropout=1.0", "less than 1"),
    (CALM, "model.head.beta=2.0", "'model.head.beta' cannot be 2.0: input should be less than 2"),
    (CALM, "model.head.num_samples=1", "greater than or equal to 2"),
    (AUTOENCODER, "optimizer.lr_decay_style=cosin", "'cosine' or 'WSD'; did you mean 'cosine'?"),
    (CALM, "model.input=token", "did you mean 'tokens'?"),
    (CALM, "model.head.type=flaw", "tags: 'energy', 'diffusion', 'flow'; did you mean 'flow'?"),
    (FLOW, "model.head.num_sampling_steps=1001", "'model.head.num_sampling_steps' cannot be 1001"),
    (AUTOENCODER, "model.type=clam", "expected tags: 'autoencoder', 'calm', 'ar'; did you mean 'calm'?"),
    (AUTOENCODER, "train.rampup_batch_size=[1, 2]", "'train.rampup_batch_size.2' is required"),
    (AUTOENCODER, "run.directory.x=3", "'run.directory.x' needs 'directory' to be a section, but it holds 'runs/ae'"),
]


@pytest.mark.parametrize(("text", "override", "words"), WRONG_VALUES)
def test_a_wrong_value_is_refused_with_what_is_expected(load: Any, text: str, override: str, words: str) -> None:
    assert words in refusal(load, text, overrides=(override,))


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("type: autoencoder, ", "'model.type' is required"),
        (", vocab_size: 512", "'model.vocab_size' is required and not set"),
        ("train: {train_iters: 10}", "'train' is required and not set"),
    ],
)
def test_a_missing_setting_is_named(load: Any, missing: str, words: str) -> None:
    assert words in refusal(load, AUTOENCODER.replace(missing, ""))


def test_all_problems_are_told_at_once(load: Any) -> None:
    message = refusal(load, AUTOENCODER, overrides=("optimizer.lrr=1", "train.train_iters=x", "parallel.zero_stage=9"))
    assert all(name in message for name in ("optimizer.lrr", "train.train_iters", "parallel.zero_stage"))


def test_a_setting_repeated_in_a_file_is_refused_with_its_line(load: Any) -> None:
    message = refusal(load, AUTOENCODER + "optimizer:\n  lr: 1e-3\n  min_lr: 0\n  lr: 1e-4\n")
    assert "the setting 'lr' is given twice" in message
    assert "a.yaml, line 9" in message


def test_a_setting_in_two_files_is_refused_with_both(load: Any) -> None:
    message = refusal(load, AUTOENCODER, "model: {vocab_size: 512}\n")
    assert "'model.vocab_size' is set by two files" in message
    assert "a.yaml and " in message and "b.yaml" in message and "model.vocab_size=value" in message


def test_a_setting_repeated_on_the_command_line_is_refused(load: Any) -> None:
    message = refusal(load, AUTOENCODER, overrides=("optimizer.lr=1", "optimizer.lr=2"))
    assert "'optimizer.lr' is given twice on the command line" in message


@pytest.mark.parametrize("word", ["optimizer.lr", "lr=3", "model=3"])
def test_a_word_that_is_no_setting_is_refused(load: Any, word: str) -> None:
    assert f"'{word}' is no setting" in refusal(load, AUTOENCODER, overrides=(word,))


def test_a_value_that_does_not_parse_is_refused(load: Any) -> None:
    assert "the value of 'optimizer.lr' does not parse" in refusal(load, AUTOENCODER, overrides=("optimizer.lr=[1",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [1\n", "is not valid YAML"),
        (b"? [a]\n: 1\n", "is not valid YAML"),
        (b"a: \x00\n", "is not valid YAML"),
        (b"- 1\n", "holds sections of settings"),
        (b"\xff\xfe\xfa", "cannot be read"),
    ],
)
def test_a_file_that_is_no_config_is_refused_by_name(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_run([path])
    assert words in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_file_is_refused_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "ae_demo.yaml").write_text(AUTOENCODER)
    with pytest.raises(UserError, match=r"no such config file(.|\n)*did you mean ae_demo.yaml"):
        load_run([tmp_path / "ae_dmo.yaml"])
    with pytest.raises(UserError, match="cannot be read"):
        load_run([tmp_path])


def test_the_source_is_named() -> None:
    with pytest.raises(UserError, match="where: a test"):
        parse_run({}, "a test")
