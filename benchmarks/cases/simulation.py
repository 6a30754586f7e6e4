"""Simulated against measured steps of a pipeline of two gloo ranks: ratio = simulated / measured, 1 if they agree.

The simulation is given what each stage takes by itself just before each step; the ratio is the median over rounds. Four
cuts, each with its own number of micro-batches.
"""

from collections.abc import Mapping

from benchmarks.harness import Part, Row, counted, row
from benchmarks.small_run import launch
from calm_megatron.plan.simulation import StageTimes, simulate

PIPE = (
    "parallel.pipeline_model_parallel_size=2", "model.hidden_size=192", "model.ffn_hidden_size=512",
    "data.seq_length=256", "train.micro_batch_size=2",
)  # fmt: skip
CUTS = {
    "within the backbone": (4, ["model.num_layers=6"]),
    "between backbone and head": (8, ["model.num_layers=8", "model.head.num_layers=4"]),
    "within a long head": (2, ["model.num_layers=2", "model.head.num_layers=6"]),
    "within a long backbone": (6, ["model.num_layers=12", "model.head.num_layers=1"]),
}
"""Micro-batches of a step, and the layers."""


def run() -> Row:
    """Milliseconds of steps: measured are ours, simulated the baseline."""
    jobs = {
        name: [*PIPE, *settings, f"train.global_batch_size={2 * micro_batches}"]
        for name, (micro_batches, settings) in CUTS.items()
    }
    first, last = launch("simulation_worker", 2, jobs, timeout=1200)
    parts = []
    for name, (micro_batches, _) in CUTS.items():
        rounds = list(zip(first[name], last[name], strict=True))
        measured = [max(rank["step"] for rank in ranks) for ranks in rounds]
        simulated = [simulate([_times(rank) for rank in ranks], micro_batches).seconds for ranks in rounds]
        found = row(measured, simulated, "s")
        ours = 1e3 * found.ours
        parts.append(Part(f"{name}, {micro_batches} micro-batches", ours, found.ratio * ours))
    return counted(parts, "ms")


def _times(rank: Mapping[str, float]) -> StageTimes:
    """Of one round."""
    return StageTimes(rank["forward"], rank["backward"], rank["send"], rank["send"], rank["update"])
