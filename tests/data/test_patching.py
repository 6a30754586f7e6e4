"""Packing: every token once, patches within documents, order a pure function of seed and index."""

import numpy as np
import pytest

from calm_megatron.config.errors import UserError
from calm_megatron.data.indexed import IndexedCorpus
from calm_megatron.data.patching import GROUP_DOCUMENTS, PatchedDataset
from calm_megatron.data.permutation import KeyedOrder, permutation, shuffled
from calm_megatron.data.sequences import check_lengths


def dataset_of(
    corpus: IndexedCorpus, *, K: int = 4, T: int = 96, align: bool = True, seed: int | None = 1
) -> PatchedDataset:
    documents = np.arange(len(corpus.lengths_D))[3:]
    return PatchedDataset(
        corpus, documents, name="training", patch_size=K, seq_length=T, align_documents=align, seed=seed
    )


def stream(documents: list[np.ndarray], K: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """The documents end to end, each filled up to whole patches, and the document of each token; slow and plain."""
    filled = [np.append(ids, np.full(-len(ids) % K, pad_id)) for ids in documents]
    return np.concatenate(filled), np.repeat(np.arange(len(filled)), [len(ids) for ids in filled])


@pytest.mark.parametrize("K", [1, 4, 7])
@pytest.mark.parametrize("align", [True, False])
def test_unshuffled_sequences_are_the_stream_cut_up(
    corpus: IndexedCorpus, documents: list[np.ndarray], K: int, align: bool
) -> None:
    T = 12 * K
    dataset = dataset_of(corpus, K=K, T=T, align=align, seed=None)
    ids, owner = stream(documents[3:], K if align else 1, corpus.facts.pad_id)
    assert dataset.filled_tokens == len(ids)
    assert dataset.tokens == sum(map(len, documents[3:]))
    assert dataset.sequences_per_epoch == len(ids) // T
    for index in range(dataset.sequences_per_epoch):
        sequence = dataset.sequence(index)
        part = slice(index * T, (index + 1) * T)
        assert np.array_equal(sequence.ids_T, ids[part])
        _, expected = np.unique(owner[part][::K], return_inverse=True)
        assert np.array_equal(sequence.documents_P, expected)
        assert sequence.ids_T.dtype == np.int64 and sequence.documents_P.dtype == np.int32
    with pytest.raises(IndexError):
        dataset.sequence(dataset.sequences_per_epoch)


def test_no_patch_straddles_two_documents(corpus: IndexedCorpus) -> None:
    dataset, facts = dataset_of(corpus, K=4), corpus.facts
    fill = 0
    for index in range(dataset.sequences_per_epoch):
        sequence = dataset.sequence(index)
        patches_PK = sequence.ids_T.reshape(-1, 4)
        ended_PK = np.cumsum(patches_PK == facts.eod_id, axis=1)
        behind_PK = (ended_PK - (patches_PK == facts.eod_id)) > 0
        assert (patches_PK[behind_PK] == facts.pad_id).all(), "behind the end of a document its patch holds fill only"
        assert np.array_equal(patches_PK == facts.pad_id, behind_PK), "fill is nowhere else"
        new_P = np.diff(sequence.documents_P)
        assert np.array_equal(new_P, (ended_PK[:-1, -1] > 0).astype(int)), "documents change where one has ended"
        fill += int(behind_PK.sum())
    lengths = corpus.lengths_D[3:]
    assert 0 < fill <= int((-lengths % 4).sum())


def epoch_tokens(dataset: PatchedDataset, epoch: int) -> np.ndarray:
    count = dataset.sequences_per_epoch
    return np.array([dataset.sequence(epoch * count + index).ids_T for index in range(count)])


def test_an_epoch_holds_every_token_but_the_remainder(corpus: IndexedCorpus, documents: list[np.ndarray]) -> None:
    dataset = dataset_of(corpus)
    everything, _ = stream(documents[3:], 4, corpus.facts.pad_id)
    size = corpus.facts.vocab_size
    for epoch in (0, 1):
        seen = epoch_tokens(dataset, epoch)
        assert seen.size == len(everything) // 96 * 96
        missing = np.bincount(everything, minlength=size) - np.bincount(seen.ravel(), minlength=size)
        assert (missing >= 0).all() and missing.sum() == len(everything) % 96


def test_documents_come_whole_and_shuffled(corpus: IndexedCorpus, documents: list[np.ndarray]) -> None:
    """Sequences put back into the order of the stream give whole documents in the order the key says."""
    dataset = dataset_of(corpus, align=False)
    count = len(documents) - 3
    groups = -(-count // GROUP_DOCUMENTS)
    assert groups > 2
    key = int(np.random.SeedSequence(1, spawn_key=(0, 2)).generate_state(1, np.uint64)[0])
    members = [np.arange(3, len(documents))[group::groups] for group in permutation(groups, 1, 2, 2)]
    order = [number for group in members for number in shuffled(group, key).tolist()]
    keyed = KeyedOrder(dataset.sequences_per_epoch, 1, 1, 2)
    place = [keyed[index] for index in range(dataset.sequences_per_epoch)]
    seen = epoch_tokens(dataset, 2)[np.argsort(place)].ravel()
    expected = np.concatenate([documents[number] for number in order])
    assert np.array_equal(seen, expected[: len(seen)])
    assert order != sorted(order) and place != sorted(place)


def test_orders_of_few_numbers_look_random() -> None:
    numbers = np.arange(0, 256_000, 1000)
    orders = [shuffled(numbers, key) for key in range(400)]
    assert all(np.array_equal(np.sort(order), numbers) for order in orders)
    firsts = np.array([order[:4] // 1000 for order in orders])
    assert abs(firsts.mean() - 127.5) < 6 and abs(np.corrcoef(firsts[:, 0], firsts[:, 1])[0, 1]) < 0.2
    assert len(set(firsts[:, 0].tolist())) > 150


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 17, 100, 1000, 4097])
def test_keyed_orders_hold_every_number_once(count: int) -> None:
    first, other = ([KeyedOrder(count, 7, key)[place] for place in range(count)] for key in (0, 1))
    assert sorted(first) == sorted(other) == list(range(count))
    assert count < 17 or first != other
    if count >= 1000:
        assert abs(np.corrcoef(first, np.arange(count))[0, 1]) < 0.1
        assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.1


def test_order_is_a_pure_function_of_seed_and_index(corpus: IndexedCorpus) -> None:
    dataset, again, other = dataset_of(corpus), dataset_of(corpus), dataset_of(corpus, seed=2)
    count = dataset.sequences_per_epoch
    indices = [0, count - 1, count, 3 * count + 5, 1, 7 * count]
    forward = {index: dataset.sequence(index).ids_T for index in indices}
    for index in reversed(indices):
        assert np.array_equal(again.sequence(index).ids_T, forward[index])
    assert not np.array_equal(epoch_tokens(dataset, 0), epoch_tokens(dataset, 1))
    assert not np.array_equal(epoch_tokens(dataset, 0), epoch_tokens(other, 0))


def test_sequences_may_be_longer_than_documents_and_shorter(corpus: IndexedCorpus) -> None:
    short, long = dataset_of(corpus, T=4, seed=None), dataset_of(corpus, T=4096, seed=None)
    assert np.array_equal(
        epoch_tokens(short, 0).ravel()[: long.sequences_per_epoch * 4096], epoch_tokens(long, 0).ravel()
    )


def test_patch_that_does_not_divide_the_sequence_is_refused(corpus: IndexedCorpus) -> None:
    with pytest.raises(UserError, match=r"whole patches of 4[\s\S]*set data.seq_length to 96 or 100"):
        dataset_of(corpus, T=98)
    with pytest.raises(UserError, match=r"to 8$"):
        check_lengths(6, 8)


def test_too_little_text_is_refused(corpus: IndexedCorpus) -> None:
    with pytest.raises(
        UserError, match=r"training documents do not fill one sequence: they have [\d,]+ tokens, 4,194,304"
    ):
        dataset_of(corpus, T=1 << 22)
