"""Documents dealt out to training, validation and test."""

import numpy as np
import pytest

from calm_megatron.config.errors import UserError
from calm_megatron.data.permutation import permutation
from calm_megatron.data.splits import parse_split, split_documents


def test_every_document_is_in_exactly_one_part() -> None:
    lengths = np.random.default_rng(1).integers(1, 5000, size=3000)
    split = split_documents(lengths, "90,7,3")
    assert np.array_equal(np.sort(np.concatenate([split.train, split.valid, split.test])), np.arange(3000))
    shares = [lengths[part].sum() / lengths.sum() for part in (split.train, split.valid, split.test)]
    assert np.allclose(shares, [0.9, 0.07, 0.03], atol=0.002)
    assert all((np.diff(part) > 0).all() for part in (split.train, split.valid, split.test))


def test_parts_of_a_sorted_corpus_are_alike() -> None:
    split = split_documents(np.full(10_000, 100), "50,50")
    assert abs(split.train.mean() - split.valid.mean()) < 200


def test_every_part_with_a_share_gets_a_document() -> None:
    for lengths in ([5, 5, 5], [1000, 1, 1], [1, 1, 1000]):
        for split in ("98,1,1", "1,1,98", "1,98,1"):
            parts = split_documents(np.array(lengths), split)
            assert [len(parts.train), len(parts.valid), len(parts.test)] == [1, 1, 1]
    parts = split_documents(np.array([7, 7]), "99,0,1")
    assert [len(parts.train), len(parts.valid), len(parts.test)] == [1, 0, 1]
    assert len(split_documents(np.array([7]), "1").train) == 1


def test_order_of_documents_is_written_in_stone() -> None:
    """Later versions must split old data sets as this one does; else test documents would leak into training."""
    assert permutation(8, 0x5B117).tolist() == GOLDEN_ORDER
    split = split_documents(np.full(8, 10), "6,1,1")
    assert split.valid.tolist() == [GOLDEN_ORDER[6]] and split.test.tolist() == [GOLDEN_ORDER[7]]


GOLDEN_ORDER = [1, 5, 0, 6, 2, 4, 3, 7]


@pytest.mark.parametrize("split", ["", "a,b", "1,2,3,4", "-1,1,1", "0,1,1", "0", "nan,1", "inf,1"])
def test_malformed_splits_are_refused(split: str) -> None:
    with pytest.raises(UserError, match="is not a split"):
        parse_split(split)


def test_too_few_documents_are_refused() -> None:
    with pytest.raises(UserError, match="2 documents cannot be split into 3 parts"):
        split_documents(np.array([10, 10]), "98,1,1")
