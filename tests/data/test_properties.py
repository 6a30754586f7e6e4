"""What holds of every data set: each token once, patches within documents, any place resumed by any ranks."""

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from calm_megatron.data.corpus_facts import CorpusFacts
from calm_megatron.data.indexed import IndexedCorpus, IndexedWriter
from calm_megatron.data.patching import PatchedDataset
from calm_megatron.data.prefetch import TrainingBatches
from calm_megatron.data.sampler import BatchSchedule

EOD, PAD, VOCABULARY = 0, 1, 60_000
LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=700)


def write(lengths: list[int], prefix: Path) -> IndexedCorpus:
    """Documents of these lengths, whose ids tell place and document apart as far as 16 bits go."""
    counter = 0
    with IndexedWriter(prefix, vocab_size=VOCABULARY, eod_id=EOD) as writer:
        for length in lengths:
            writer.add(2 + (counter + np.arange(length)) % (VOCABULARY - 2))
            counter += length
        facts = CorpusFacts(
            **writer.counts(),
            text_bytes=None,
            unknown_tokens=0,
            vocab_size=VOCABULARY,
            eod_id=EOD,
            pad_id=PAD,
            tokenizer="",
            tokenizer_relative="",
            tokenizer_fingerprint="",
            sources=(),
            empty_documents=0,
            invalid_records=0,
        )
        writer.publish(facts)
    return IndexedCorpus.open(prefix)


@given(
    lengths=LENGTHS, K=st.integers(1, 6), patches=st.integers(1, 12), seed=st.integers(0, 99), epoch=st.integers(0, 3)
)
@settings(max_examples=60, deadline=None)
def test_an_epoch_has_every_token_once_and_no_patch_of_two_documents(
    lengths: list[int], K: int, patches: int, seed: int, epoch: int
) -> None:
    T = K * patches
    with tempfile.TemporaryDirectory() as folder:
        corpus = write([*lengths, T], Path(folder) / "set")
        dataset = PatchedDataset(
            corpus, None, name="training", patch_size=K, seq_length=T, align_documents=True, seed=seed
        )
        count = dataset.sequences_per_epoch
        sequences = [dataset.sequence(epoch * count + index) for index in range(count)]
        ids = np.concatenate([sequence.ids_T for sequence in sequences])
        everything = np.bincount(np.concatenate(list(corpus.parts())), minlength=VOCABULARY)
        missing = everything - np.bincount(ids[ids != PAD], minlength=VOCABULARY)
        assert (missing >= 0).all() and missing.sum() < T, "every token at most once, and all but a remainder"
        patches_RK = ids.reshape(-1, K)
        ended_RK = np.cumsum(patches_RK == EOD, axis=1) - (patches_RK == EOD)
        assert np.array_equal(ended_RK > 0, patches_RK == PAD), "behind a document's end its patch holds pads only"
        for sequence in sequences:
            has_end_P = (sequence.ids_T.reshape(-1, K) == EOD).any(axis=1)
            assert np.array_equal(np.diff(sequence.documents_P), has_end_P[:-1].astype(int))


@cache
def kept() -> IndexedCorpus:
    folder = Path(tempfile.mkdtemp())
    return write([7, 33, 120, 5, 64] * 200, folder / "set")


@given(
    parts=st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 6]), st.sampled_from([1, 2]), st.integers(1, 4)), max_size=5),
    seed=st.integers(0, 5),
)
@settings(max_examples=25, deadline=None)
def test_any_ranks_take_up_the_exact_sequence(parts: list[tuple[int, int, int]], seed: int) -> None:
    """A run stopped again and again, each time going on with other ranks and micro-batches."""
    dataset = PatchedDataset(
        kept(), None, name="training", patch_size=4, seq_length=32, align_documents=True, seed=seed
    )
    consumed, expected = 0, 0
    for ranks, micro, steps in parts:
        schedule = BatchSchedule(24, None, micro, ranks)
        streams = [TrainingBatches(dataset, schedule, consumed, rank) for rank in range(ranks)]
        for _ in range(steps):
            rows = {
                index: ids_T
                for stream in streams
                for batch in next(stream)
                for index, ids_T in zip(batch.sequence_ids_B.tolist(), batch.ids_BT.numpy(), strict=True)
            }
            assert sorted(rows) == list(range(expected, expected + 24))
            assert all(np.array_equal(ids_T, dataset.sequence(index).ids_T) for index, ids_T in rows.items())
            consumed, expected = consumed + 24, expected + 24
        for stream in streams:
            stream.close()
