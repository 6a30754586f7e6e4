"""Bytes that a tensor rank sends in a step, counted in real runs, against the planner's formula."""

from benchmarks.harness import Row, counted
from benchmarks.traffic import BF16, SEQUENCE, TENSOR, beside_the_formula

LAYOUTS = {
    "tp2": (TENSOR,),
    "tp2 sp": (TENSOR, SEQUENCE),
    "tp2 sp recompute": (TENSOR, SEQUENCE, "train.recompute_granularity=full"),
    "tp2 sp bf16": (TENSOR, SEQUENCE, *BF16),
}


def run() -> Row:
    """Count on two ranks."""
    return counted(beside_the_formula(2, LAYOUTS), "MB")
