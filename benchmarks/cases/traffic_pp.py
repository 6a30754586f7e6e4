"""Bytes that a pipeline stage sends in a step, counted in real runs, against the planner's formula."""

from benchmarks.harness import Row, counted
from benchmarks.traffic import SEQUENCE, TENSOR, beside_the_formula

LAYOUTS = {
    "pp4": ("parallel.pipeline_model_parallel_size=4",),
    "tp2 sp pp2": ("parallel.pipeline_model_parallel_size=2", TENSOR, SEQUENCE),
}


def run() -> Row:
    """Count on four ranks; of the layout with tensor ranks, what goes between the stages."""
    parts = beside_the_formula(4, LAYOUTS)
    return counted([part for part in parts if part.name.endswith("send")], "MB")
