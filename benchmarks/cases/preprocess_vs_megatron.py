"""CPU time of the whole preprocessing against Megatron-LM's pipeline, re-enacted; both give the same files.

Imports are left out of the row; the parts are the CPU time with them, as a user has it, and the peak memory of a worker
against the 300 MB that it may take.
"""

import statistics
from dataclasses import replace
from functools import partial

from benchmarks import pipelines
from benchmarks.elsewhere import cost_elsewhere
from benchmarks.harness import Part, Row, row
from benchmarks.texts import texts

ROUNDS = 3
ALLOWED_MIB = 300e6 / 2**20


def run() -> Row:
    """Measure in turns."""
    with texts() as data:
        files = (data.jsonl, data.tokenizer)
        costs = [
            (
                cost_elsewhere(partial(pipelines.ours, *files, data.folder / "ours", 1)),
                cost_elsewhere(partial(pipelines.megatron, *files, data.folder / "megatron")),
            )
            for _ in range(ROUNDS)
        ]
        for ending in (".bin", ".idx"):
            same = (data.folder / f"ours{ending}").read_bytes() == (data.folder / f"megatron{ending}").read_bytes()
            assert same, f"the {ending} files differ"
        per_mb = data.bytes / 1e6
        ours, baseline = ([pair[k].cpu_seconds / per_mb for pair in costs] for k in (0, 1))
        whole = [statistics.median(pair[k].whole_cpu_seconds / per_mb for pair in costs) for k in (0, 1)]
        peak = max(pair[0].child_mib for pair in costs)
    parts = (Part("cpu-s/MB with imports", *whole), Part("MiB of a worker, and allowed", peak, ALLOWED_MIB))
    return replace(row(ours, baseline, "cpu-s/MB"), parts=parts)
