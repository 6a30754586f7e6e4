"""Memory of real runs beside the planner's formula."""

from benchmarks.harness import Part
from benchmarks.small_run import launch, small
from calm_megatron.plan.memory import state_memory

RANKS = 2
MB = 1e6
SIZES = (
    "model.hidden_size=320", "model.ffn_hidden_size=640", "model.num_layers=2", "train.global_batch_size=8",
)  # fmt: skip
"""4.6 million parameters, in matrices large enough for ZeRO-3 to share."""
LAYOUTS = {
    f"zero{stage} {precision}": (*SIZES, f"parallel.zero_stage={stage}", f"train.precision={precision}")
    for precision in ("fp32", "bf16")
    for stage in range(4)
    if precision == "fp32" or stage > 0
}


def beside_the_formula() -> list[Part]:
    """Peaks in MB of both ranks' larger one, measured and by the formula, the buckets apart."""
    jobs = {name: list(settings) for name, settings in LAYOUTS.items()}
    found = launch("memory_worker", RANKS, jobs)
    parts = []
    for name, settings in LAYOUTS.items():
        formula = state_memory(small(*settings), RANKS)
        measured = max((rank[name] for rank in found), key=lambda peak: sum(peak.values()))
        rest = sum(measured.values()) - measured["bucket"]
        parts.append(Part(name, rest / MB, (formula.total - formula.bucket) / MB))
        if measured["bucket"] or formula.bucket:
            parts.append(Part(f"{name}: bucket", measured["bucket"] / MB, formula.bucket / MB))
    return parts
