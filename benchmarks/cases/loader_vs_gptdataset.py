"""Time of a sample of 8,192 tokens from a data set in memory, against megatron-core's `GPTDataset`.

Both give shuffled sequences of whole documents; ours also says which document each patch is of.
"""

from functools import partial

from benchmarks import gpt_dataset
from benchmarks.harness import Row, compare_times
from benchmarks.saved import on_disk

TOKENS = 100_000_000
SAMPLES = 500


def _read(dataset: object, first: list[int]) -> None:
    for index in range(first[0], first[0] + SAMPLES):
        dataset.sequence(index) if hasattr(dataset, "sequence") else dataset[index]  # type: ignore[index]
    first[0] += SAMPLES


def run() -> Row:
    """Read other samples in each round."""
    with on_disk() as folder:
        gpt_dataset.random_data_set(folder / "set", TOKENS)
        dataset, megatrons = gpt_dataset.ours(folder / "set"), gpt_dataset.megatrons(folder / "set", SAMPLES * 17)
        sample = megatrons[0]["tokens"]
        assert len(sample) == len(dataset.sequence(0).ids_T) == gpt_dataset.SEQ_LENGTH
        return compare_times(partial(_read, dataset, [0]), partial(_read, megatrons, [0]))
