"""Seconds until the first sample of 10 billion tokens can be read, against `GPTDataset`, which builds its index.

The files are sparse. The part beside the row is the memory in MiB that it takes.
"""

import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks import gpt_dataset
from benchmarks.elsewhere import cost_elsewhere
from benchmarks.harness import Part, Row, row
from benchmarks.saved import on_disk

TOKENS = 10_000_000_000
ROUNDS = 3


def _ours(prefix: Path) -> Callable[[], object]:
    def run() -> object:
        dataset = gpt_dataset.ours(prefix)
        assert dataset.sequences_per_epoch > TOKENS // gpt_dataset.SEQ_LENGTH * 0.99
        return dataset, dataset.sequence(12_345)

    return run


def _megatrons(prefix: Path) -> Callable[[], object]:
    import megatron.core.datasets.gpt_dataset  # noqa: F401 - not part of what is measured

    return lambda: gpt_dataset.megatrons(prefix, TOKENS // gpt_dataset.SEQ_LENGTH)[12_345]


def run() -> Row:
    """Open in turns."""
    with on_disk() as folder:
        gpt_dataset.sparse_data_set(folder / "set", TOKENS)
        costs = [
            (
                cost_elsewhere(partial(_ours, folder / "set")),
                cost_elsewhere(partial(_megatrons, folder / "set")),
            )
            for _ in range(ROUNDS)
        ]
    grown = [statistics.median(pair[k].grown_mib for pair in costs) for k in (0, 1)]
    seconds = [[pair[k].wall_seconds for pair in costs] for k in (0, 1)]
    return replace(row(seconds[0], seconds[1], "s"), parts=(Part("MiB", grown[0], grown[1]),))
