"""Wall time of the preprocessing with two worker processes against one; it means something on idle cores only."""

from functools import partial

from benchmarks import pipelines
from benchmarks.elsewhere import cost_elsewhere
from benchmarks.harness import Row, row
from benchmarks.texts import texts

ROUNDS = 3
BYTES = 120_000_000


def run() -> Row:
    """Measure in turns."""
    with texts(BYTES) as data:
        walls = [
            [
                cost_elsewhere(
                    partial(pipelines.ours, data.jsonl, data.tokenizer, data.folder / str(workers), workers)
                ).wall_seconds
                for workers in (2, 1)
            ]
            for _ in range(ROUNDS)
        ]
        assert (data.folder / "1.bin").read_bytes() == (data.folder / "2.bin").read_bytes()
    return row([pair[0] for pair in walls], [pair[1] for pair in walls], "s")
