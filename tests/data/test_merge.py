"""Data sets made from data sets: joined, cut, and drawn from."""

from pathlib import Path

import numpy as np
import pytest

from calm_megatron.config.errors import UserError
from calm_megatron.data.indexed import IndexedCorpus
from calm_megatron.data.merge import merge, split, subset
from calm_megatron.data.splits import split_documents
from calm_megatron.data.tokenizer import Tokenizer


def contents(prefix: Path) -> list[bytes]:
    corpus = IndexedCorpus.open(prefix)
    corpus.verify()
    return [corpus.document(number).tobytes() for number in range(len(corpus.lengths_D))]


def test_parts_joined_are_the_whole(prefix: Path, corpus: IndexedCorpus, tmp_path: Path) -> None:
    made = split(prefix, [tmp_path / "train", tmp_path / "test"], "90,0,10")
    parts = split_documents(corpus.lengths_D, "90,0,10")
    assert [facts.documents for facts in made] == [len(parts.train), len(parts.test)]
    assert contents(tmp_path / "test") == [corpus.document(int(number)).tobytes() for number in parts.test]
    assert made[0].text_bytes is None, "what nobody counted is unknown"
    merge([tmp_path / "train", tmp_path / "test"], tmp_path / "joined")
    assert sorted(contents(tmp_path / "joined")) == sorted(contents(prefix))
    twice = merge([prefix, prefix], tmp_path / "twice")
    assert twice.tokens == 2 * corpus.facts.tokens and twice.text_bytes == 2 * (corpus.facts.text_bytes or 0)
    assert twice.tokenizer_fingerprint == corpus.facts.tokenizer_fingerprint


def test_outputs_of_a_split_are_looked_at_before_any_is_written(prefix: Path, tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in "abc")
    with pytest.raises(UserError, match="the output is given twice"):
        split(prefix, [a, b, tmp_path / ".." / tmp_path.name / "b"], "90,5,5", overwrite=True)
    assert list(tmp_path.iterdir()) == []
    subset(prefix, b, 100)
    subset(prefix, c, 100)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"there is a data set already\n.*b\.idx, .*c\.idx"):
        split(prefix, [a, b, c], "90,5,5")
    assert sorted(tmp_path.iterdir()) == before
    assert len(split(prefix, [a, b, c], "90,5,5", overwrite=True)) == 3


def test_subsets_are_of_the_size_and_nested(prefix: Path, corpus: IndexedCorpus, tmp_path: Path) -> None:
    sizes = (corpus.facts.tokens // 10, corpus.facts.tokens // 3)
    small, large = (subset(prefix, tmp_path / str(size), size) for size in sizes)
    assert sizes[0] <= small.tokens < sizes[0] + int(corpus.lengths_D.max())
    assert set(contents(tmp_path / str(sizes[0]))) <= set(contents(tmp_path / str(sizes[1])))
    assert large.documents > small.documents
    with pytest.raises(UserError, match="no subset of"):
        subset(prefix, tmp_path / "more", corpus.facts.tokens + 1)
    with pytest.raises(UserError, match="there is a data set already"):
        subset(prefix, tmp_path / str(sizes[0]), 1)


def test_ids_of_other_tokenizers_do_not_mix(prefix: Path, corpus: IndexedCorpus, tmp_path: Path) -> None:
    import dataclasses

    from calm_megatron.data.corpus_facts import write_facts

    merge([prefix], tmp_path / "other")
    facts = dataclasses.replace(IndexedCorpus.open(tmp_path / "other").facts, tokenizer_fingerprint="0" * 64)
    write_facts(tmp_path / "other", facts)
    with pytest.raises(UserError, match="different tokenizers"):
        merge([prefix, tmp_path / "other"], tmp_path / "mixed")
    assert np.array_equal(IndexedCorpus.open(tmp_path / "other").lengths_D, corpus.lengths_D)
    assert Tokenizer.load(corpus.facts.tokenizer).meaning == corpus.facts.meaning
