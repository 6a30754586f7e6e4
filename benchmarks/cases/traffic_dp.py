"""Bytes that a data rank sends in a step, counted in real runs, against the planner's formula."""

from benchmarks.harness import Row, counted
from benchmarks.traffic import beside_the_formula

LARGE = ("model.hidden_size=320", "model.ffn_hidden_size=640")
"""Matrices large enough for ZeRO-3 to share."""
LAYOUTS = {
    **{f"dp2 zero{stage}": (f"parallel.zero_stage={stage}", *LARGE) for stage in range(4)},
    "dp2 zero1 bf16": ("parallel.zero_stage=1", "train.precision=bf16", *LARGE),
    "dp2 zero3 bf16": ("parallel.zero_stage=3", "train.precision=bf16", *LARGE),
}


def run() -> Row:
    """Count on two ranks."""
    return counted(beside_the_formula(2, LAYOUTS), "MB")
