"""CPU time of the whole preprocessing against nothing but `tokenizers`' fastest call."""

from functools import partial

from benchmarks import pipelines
from benchmarks.elsewhere import cost_elsewhere
from benchmarks.harness import Row, row
from benchmarks.texts import texts

ROUNDS = 3


def run() -> Row:
    """Measure in turns."""
    with texts() as data:
        files, per_mb = (data.jsonl, data.tokenizer), data.bytes / 1e6
        pairs = [
            (
                cost_elsewhere(partial(pipelines.ours, *files, data.folder / "ours", 1)).cpu_seconds / per_mb,
                cost_elsewhere(partial(pipelines.encode_batch, *files)).cpu_seconds / per_mb,
            )
            for _ in range(ROUNDS)
        ]
    return row([pair[0] for pair in pairs], [pair[1] for pair in pairs], "cpu-s/MB")
