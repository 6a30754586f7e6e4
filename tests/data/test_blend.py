"""Blends: proportions within one sample, every sample once, in any order, at any size."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import DataConfig
from calm_megatron.data.blend import LONGEST_PERIOD, BlendedSequences, JoinedSequences, schedule, whole_shares
from calm_megatron.data.data_splits import DataSplits
from calm_megatron.data.indexed import IndexedCorpus
from calm_megatron.data.merge import split
from calm_megatron.data.patching import PatchedDataset


@settings(deadline=None, max_examples=60)
@given(shares=st.lists(st.integers(1, 400), min_size=1, max_size=12))
def test_proportions_hold_within_one_sample_at_every_place(shares: list[int]) -> None:
    chosen = schedule(shares)
    period = sum(shares)
    taken_NK = np.cumsum(chosen[:, None] == np.arange(len(shares)), axis=0)
    ideal_NK = np.arange(1, period + 1)[:, None] * np.array(shares) / period
    assert np.abs(taken_NK - ideal_NK).max() < 1
    assert taken_NK[-1].tolist() == shares


@settings(deadline=None, max_examples=100)
@given(weights=st.lists(st.floats(0.001, 1000), min_size=1, max_size=20))
def test_any_weights_become_shares_close_to_them(weights: list[float]) -> None:
    smallest = min(weights) / sum(weights)
    if smallest * LONGEST_PERIOD < 2:
        return
    shares = whole_shares(weights)
    assert sum(shares) <= LONGEST_PERIOD
    for weight, share in zip(weights, shares, strict=True):
        assert abs(Fraction(share, sum(shares)) - Fraction(weight) / sum(map(Fraction, weights))) <= 1 / LONGEST_PERIOD


def test_decimals_are_taken_as_they_are_written() -> None:
    assert whole_shares([0.7, 0.2, 0.1]) == [7, 2, 1]
    assert whole_shares([1, 1, 2]) == [1, 1, 2]
    assert sum(whole_shares([0.123456789, 1 / 3])) == LONGEST_PERIOD
    with pytest.raises(UserError, match="less than one sample in 100,000"):
        whole_shares([1e-9, 1.0])


@pytest.fixture(scope="module")
def two(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("two")
    outputs = (folder / "large", folder / "small")
    split(prefix, outputs, "80,20")
    return outputs


def blend_of(two: tuple[Path, Path], **settings: object) -> DataSplits:
    paths = tuple(map(str, two))
    config = DataConfig(data_path=paths, split="90,10", seq_length=64, **settings)  # type: ignore[arg-type]
    return DataSplits.open(config, patch_size=4, seed=5, vocab_size=600)


def test_weights_and_epochs(two: tuple[Path, Path]) -> None:
    def counts(samples: int, **settings: object) -> list[int]:
        train = blend_of(two, **settings).train
        assert isinstance(train, BlendedSequences)
        return np.bincount([train.place(i)[0] for i in range(samples)], minlength=2).tolist()

    assert counts(1000, blend_weights=(0.25, 0.75)) == [250, 750]
    train = blend_of(two).train
    assert isinstance(train, BlendedSequences)
    natural = [part.sequences_per_epoch for part in train.parts]
    assert counts(sum(natural)) == natural, "by default each data set is passed through once"
    twice = counts(natural[0] + 2 * natural[1], blend_epochs=(1.0, 2.0))
    assert twice == [natural[0], 2 * natural[1]]


def test_a_sample_is_its_data_sets_next(two: tuple[Path, Path]) -> None:
    train = blend_of(two, blend_weights=(2.0, 1.0)).train
    assert isinstance(train, BlendedSequences)
    seen = [0, 0]
    for index in range(3 * train.sequences_per_epoch):
        k, own = train.place(index)
        assert own == seen[k]
        seen[k] += 1
    for index in (0, 7, 10**12):
        k, own = train.place(index)
        assert np.array_equal(train.sequence(index).ids_T, train.parts[k].sequence(own).ids_T)


def test_validation_goes_through_all_sets(two: tuple[Path, Path]) -> None:
    valid = blend_of(two).valid
    assert isinstance(valid, JoinedSequences)
    assert valid.sequences_per_epoch == sum(part.sequences_per_epoch for part in valid.parts)
    last = valid.parts[1]
    assert np.array_equal(
        valid.sequence(valid.sequences_per_epoch - 1).ids_T, last.sequence(last.sequences_per_epoch - 1).ids_T
    )
    with pytest.raises(IndexError):
        valid.sequence(valid.sequences_per_epoch)


def test_patterns_name_several_data_sets(two: tuple[Path, Path]) -> None:
    config = DataConfig(data_path=str(two[0].parent / "*"), split="90,10", seq_length=64)
    by_pattern = DataSplits.open(config, patch_size=4, seed=5, vocab_size=600)
    assert by_pattern.train.fingerprint == blend_of(two).train.fingerprint
    with pytest.raises(UserError, match="1 numbers for 2 data sets"):
        blend_of(two, blend_weights=(1.0,))
    with pytest.raises(UserError, match="named twice"):
        blend_of((two[0], two[0]))


def sparse_data_set(prefix: Path, source: IndexedCorpus, documents: int, length: int) -> IndexedCorpus:
    """A data set of billions of tokens that takes no room: files with holes, all ids 0."""
    import dataclasses

    from calm_megatron.data.corpus_facts import bin_file, idx_file, write_facts
    from calm_megatron.data.index_file import write_index

    tokens = documents * length
    with open(idx_file(prefix), "wb") as stream:
        write_index(stream, np.dtype(np.uint16), [np.full(documents, length, dtype=np.int32)], documents)
    with open(bin_file(prefix), "wb") as stream:
        stream.truncate(2 * tokens)
    write_facts(prefix, dataclasses.replace(source.facts, documents=documents, tokens=tokens, bin_bytes=2 * tokens))
    return IndexedCorpus.open(prefix)


def test_more_than_32_bits_of_tokens(corpus: IndexedCorpus, tmp_path: Path) -> None:
    """A terabyte of ids in files with holes; a mark in its last document is found where it must be."""
    documents, length = 1000, 600_000_000
    large = sparse_data_set(tmp_path / "large", corpus, documents, length)
    with open(tmp_path / "large.bin", "r+b") as stream:
        stream.seek(2 * (documents * length - 1))
        stream.write(np.uint16(corpus.facts.eod_id).tobytes())
    shared = {"name": "training", "patch_size": 4, "seq_length": 1 << 20, "align_documents": True}
    plain = PatchedDataset(large, None, seed=None, **shared)  # type: ignore[arg-type]
    assert plain.tokens == documents * length == 6 * 10**11
    assert plain.sequences_per_epoch == documents * length >> 20 > 1 << 19
    assert plain.sequence(plain.sequences_per_epoch - 1).ids_T.max() == 0
    exact = PatchedDataset(large, None, seed=None, **{**shared, "seq_length": 1000})  # type: ignore[arg-type]
    assert exact.sequences_per_epoch == 6 * 10**8
    last = exact.sequence(exact.sequences_per_epoch - 1).ids_T
    assert last[-1] == corpus.facts.eod_id and last[:-1].max() == 0
    shuffled = PatchedDataset(large, None, seed=3, **{**shared, "seq_length": 1000})  # type: ignore[arg-type]
    assert shuffled.sequence(10**12 - 1).ids_T.shape == (1000,)
    blend = BlendedSequences([shuffled, shuffled], [1, 2])
    assert blend.place(3 * 10**12 + 1)[1] >= 10**12
