"""Tokenizers: special tokens, exact pieces, training; all on real text."""

import json
import shutil
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from calm_megatron.config.errors import UserError
from calm_megatron.data.pieces import split_text
from calm_megatron.data.tokenizer import Tokenizer
from calm_megatron.data.train_tokenizer import train_tokenizer

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.fixture(scope="module")
def llama_like(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with Llama-3's pattern and names, and like it without a pad token and without a config beside it."""
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(tokenizers.Regex(LLAMA3_PATTERN), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=800, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    file = tmp_path_factory.mktemp("llama") / "tokenizer.json"
    tokenizer.save(str(file))
    return file


def hard_texts() -> list[str]:
    """Real text, and soups of everything that stands near a border between words."""
    random = np.random.default_rng(7)
    parts = [
        "word",
        "7",
        "1234",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        ".",
        "...",
        "'s",
        "é",
        "汉字",
        "\u00a0",
        "!\n\n",
        "x y",
    ]
    soups = ["".join(random.choice(parts, size=400)) for _ in range(20)]
    return [topics["strings"], topics["formatstrings"], topics["assignment"], *soups]


@pytest.mark.parametrize("kind", ["gpt2", "llama3"])
@pytest.mark.parametrize("limit", [333, 1000])
def test_pieces_have_the_ids_of_the_whole(kind: str, limit: int, tokenizer_dir: Path, llama_like: Path) -> None:
    file = tokenizer_dir / "tokenizer.json" if kind == "gpt2" else llama_like
    backend = tokenizers.Tokenizer.from_file(str(file))
    for text in hard_texts():
        pieces = list(split_text(text, limit))
        assert len(pieces) >= len(text) // limit and max(map(len, pieces)) <= limit
        assert "".join(pieces) == text
        assert [i for piece in pieces for i in backend.encode(piece).ids] == backend.encode(text).ids


def test_text_without_white_space_is_cut_all_the_same() -> None:
    assert list(split_text("x" * 25, 10)) == ["x" * 10, "x" * 10, "x" * 5]
    assert list(split_text("", 10)) == [""]
    assert list(split_text("ab\ncd\nef", 4)) == ["ab", "\ncd", "\nef"]


def test_encode_is_that_of_the_library_and_comes_back(tokenizer: Tokenizer, tokenizer_dir: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    texts = [*hard_texts(), "", "naïve ☕ \U0001f600\x00"]
    ids = tokenizer.encode_batch(texts)
    assert ids == [backend.encode(text).ids for text in texts]
    assert [tokenizer.decode(one) for one in ids] == texts
    assert tokenizer.encode(texts[0]) == ids[0]


def test_megabytes_on_one_line_are_encoded(tokenizer: Tokenizer) -> None:
    page = " ".join(topics.values())
    text = (page * (5_000_000 // len(page) + 1))[:5_000_000]
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["real text", "no white space"])
def test_fifty_megabytes_on_one_line_are_encoded(tokenizer: Tokenizer, unit: str) -> None:
    page = " ".join(topics.values())
    page = page if unit == "real text" else "".join(page.split())
    text = (page * (50_000_000 // len(page) + 1))[:50_000_000]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_names_of_special_tokens_in_a_text_are_text(tokenizer: Tokenizer) -> None:
    text = "ends with <|endoftext|> and <|pad|>"
    ids = tokenizer.encode(text)
    assert not {tokenizer.eod_id, tokenizer.pad_id} & set(ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.eod_id, tokenizer.pad_id]) == text + "<|endoftext|><|pad|>"
    assert tokenizer.decode([*ids, tokenizer.eod_id, tokenizer.pad_id], drop_eod_and_pad=True) == text


def test_missing_pad_is_appended_as_the_official_code_does(llama_like: Path) -> None:
    size = tokenizers.Tokenizer.from_file(str(llama_like)).get_vocab_size()
    tokenizer = Tokenizer.load(llama_like)
    assert (tokenizer.pad_id, tokenizer.vocab_size) == (size, size + 1)
    assert tokenizer.decode([tokenizer.eod_id, tokenizer.pad_id]) == "<|end_of_text|>[PAD]"


def test_special_tokens_come_from_the_configuration(llama_like: Path, tmp_path: Path) -> None:
    shutil.copy(llama_like, tmp_path / "tokenizer.json")
    end = "<|begin_of_text|>"
    names = {"eos_token": {"content": end}, "pad_token": end, "bos_token": "<|end_of_text|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    swapped, plain = Tokenizer.load(tmp_path), Tokenizer.load(llama_like)
    assert swapped.eod_id == plain.eod_id - 1 and swapped.bos_id == plain.eod_id
    assert swapped.pad_id == plain.pad_id, "a pad token that is also the end of document must be replaced"
    assert swapped.fingerprint == plain.fingerprint


def test_tokenizer_without_end_of_document_is_refused(llama_like: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    content = json.loads(llama_like.read_text())
    content["added_tokens"] = []
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="no end-of-document token: none of"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    with pytest.raises(UserError, match='eos_token "<end>" is not in the vocabulary'):
        Tokenizer.load(tmp_path)


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no tokenizer"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": "cut')
    with pytest.raises(UserError, match="not a Hugging Face tokenizer"):
        Tokenizer.load(tmp_path)


def test_trained_tokenizer_has_its_special_tokens_last(tokenizer: Tokenizer) -> None:
    assert (tokenizer.vocab_size, tokenizer.eod_id, tokenizer.pad_id) == (600, 598, 599)
    assert tokenizer.decode([0]) == "!", "token dropout replaces tokens by id 0, which must be an ordinary one"


def test_training_is_deterministic_and_does_not_overwrite(
    texts: list[str], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    train_tokenizer(texts, tmp_path, 600)
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint
    with pytest.raises(UserError, match="there is a tokenizer already"):
        train_tokenizer(texts, tmp_path, 700)
    assert train_tokenizer(texts, tmp_path, 700, keep_every=2, overwrite=True).vocab_size == 700


def test_too_little_text_gives_a_smaller_vocabulary_and_says_so(tmp_path: Path) -> None:
    trained = train_tokenizer(["the the then"], tmp_path, 1000)
    assert 258 < trained.vocab_size < 280 and trained.requested_vocab_size == 1000
    assert Tokenizer.load(tmp_path).vocab_size == trained.vocab_size


def test_vocabulary_below_the_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too small"):
        train_tokenizer(["text"], tmp_path, 257)
    assert not list(tmp_path.iterdir())
