"""Traffic of real runs beside the planner's formula, for the cases named traffic_*."""

from collections.abc import Mapping, Sequence

from benchmarks.harness import Part
from benchmarks.small_run import autoencoder, launch, small
from calm_megatron.plan.traffic import Kind, step_traffic

TENSOR = "parallel.tensor_model_parallel_size=2"
SEQUENCE = "parallel.sequence_parallel=true"
BF16 = ("train.precision=bf16", "parallel.zero_stage=1")
MB = 1e6


def beside_the_formula(ranks: int, layouts: Mapping[str, Sequence[str]]) -> list[Part]:
    """Each kind of traffic in MB a step, counted and by the formula, for the first tensor and data rank of each stage.

    Raises:
        AssertionError: one of both knows a kind of traffic that the other does not, single figures aside.
    """
    found = launch("traffic_worker", ranks, {name: list(settings) for name, settings in layouts.items()})
    parts = []
    for name, settings in layouts.items():
        config = small(*settings)
        stages = config.parallel.pipeline_model_parallel_size
        data_ranks = ranks // (stages * config.parallel.tensor_model_parallel_size)
        for stage in range(stages):
            formula = step_traffic(config, data_ranks, stage, autoencoder(config))
            sent = {Kind(*kind): size for *kind, size in found[stage * ranks // stages][name]}
            counted = {kind: size for kind, size in sent.items() if kind.purpose != "single figures"}
            if counted.keys() != formula.keys():
                raise AssertionError(f"{name}: counted {sorted(counted)}, by the formula {sorted(formula)}")
            where = f"{name}, stage {stage}" if stages > 1 else name
            parts += [
                Part(f"{where}: {kind.purpose}, {kind.collective}", size / MB, formula[kind] / MB)
                for kind, size in counted.items()
            ]
    return parts
