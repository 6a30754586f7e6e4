"""From documents to a data set: the report, and tokenizers that do not fit."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from calm_megatron.config.errors import UserError
from calm_megatron.data.documents import DocumentReader
from calm_megatron.data.indexed import IndexedCorpus
from calm_megatron.data.preprocess import PreprocessOptions, preprocess
from calm_megatron.data.sources import find_sources
from calm_megatron.data.tokenizer import Tokenizer


def reader_of(path: Path) -> DocumentReader:
    return DocumentReader(find_sources([path]))


def word_tokenizer(folder: Path, words: list[str], normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    """A vocabulary of whole words; everything else is unknown."""
    vocabulary = {word: number for number, word in enumerate(["[UNK]", "</s>", *dict.fromkeys(words)])}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.save(str(folder / "tokenizer.json"))
    return Tokenizer.load(folder)


def test_report_adds_up(jsonl: Path, tokenizer: Tokenizer, texts: list[str], tmp_path: Path) -> None:
    report = preprocess(reader_of(jsonl), tokenizer, tmp_path / "set")
    assert report.facts == IndexedCorpus.open(tmp_path / "set").facts
    assert report.facts.tokens == sum(len(ids) + 1 for ids in tokenizer.encode_batch(texts))
    text = str(report)
    assert f"{len(texts):,} in 1 files" in text and f"{report.facts.tokens:,} (uint16)" in text
    assert "warning" not in text


def test_unknown_words_are_refused_and_nothing_is_left(jsonl: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    tokenizer = word_tokenizer(folder, ["the", "of", "a"])
    with pytest.raises(UserError, match=r"does not fit the data: \d+\.\d% of the ids are unknown"):
        preprocess(reader_of(jsonl), tokenizer, tmp_path / "set")
    assert list(tmp_path.iterdir()) == [folder]
    report = preprocess(reader_of(jsonl), tokenizer, tmp_path / "set", PreprocessOptions(allow_lossy=True))
    assert report.facts.unknown_tokens > report.facts.tokens / 2
    assert "unknown to the tokenizer" in str(report)


def test_unknown_words_behind_a_good_beginning_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "corpus.jsonl"
    lines = ["one two three"] * 20_000 + ["vier fünf sechs"] * 20_000
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    tokenizer = word_tokenizer(folder, ["one", "two", "three"])
    with pytest.raises(UserError, match="unknown to the tokenizer"):
        preprocess(reader_of(file), tokenizer, tmp_path / "set")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "tokenizer"]


def test_tokenizer_that_changes_the_text_is_refused(jsonl: Path, texts: list[str], tmp_path: Path) -> None:
    words = [word for text in texts for word in text.lower().split()]
    tokenizer = word_tokenizer(tmp_path, words, normalizers.Lowercase())
    with pytest.raises(UserError, match=r"do not come back from their ids; '.*' becomes '.*'"):
        preprocess(reader_of(jsonl), tokenizer, tmp_path / "set")


def test_poor_compression_is_told(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "russian.txt").write_text("Все счастливые семьи похожи друг на друга. " * 30)
    assert "hardly compresses" in str(preprocess(reader_of(tmp_path), tokenizer, tmp_path / "set"))


def test_existing_data_set_is_kept_unless_asked(jsonl: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    prefix = tmp_path / "set"
    preprocess(reader_of(jsonl), tokenizer, prefix)
    (tmp_path / "other.txt").write_text("another, shorter corpus")
    with pytest.raises(UserError, match="there is a data set already"):
        preprocess(reader_of(tmp_path / "other.txt"), tokenizer, prefix)
    IndexedCorpus.open(prefix).verify()
    preprocess(reader_of(tmp_path / "other.txt"), tokenizer, prefix, PreprocessOptions(overwrite=True))
    corpus = IndexedCorpus.open(prefix)
    corpus.verify()
    assert corpus.facts.documents == 1


def test_skipped_records_are_reported(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"text": "It is good to know what was left out of this text."}\n{"text"\n')
    reader = DocumentReader(find_sources([file]), skip_invalid=True)
    report = preprocess(reader, tokenizer, tmp_path / "set")
    assert report.facts.invalid_records == 1
    assert "1 invalid records left out" in str(report) and "bad.jsonl, line 2: not valid JSON" in str(report)
