"""What the pipeline stages of a model would hold and compute, as text: the plan of a run before it is started."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from calm_megatron.config.errors import UserError
from calm_megatron.config.files import load_run
from calm_megatron.config.schema import AutoencoderConfig, CalmConfig, RunConfig
from calm_megatron.plan.layers import LayerCost, layer_costs
from calm_megatron.plan.stages import cut, parameter_cut, uniform_cut

_UNNEEDED_DATA = (
    "data.data_path=unused", "data.train_data_path=null", "data.valid_data_path=null", "data.test_data_path=null",
)  # fmt: skip


def read_for_plan(files: Sequence[str | Path], overrides: Sequence[str] = ()) -> RunConfig:
    """The run that files and settings describe. Where it lives and which data it reads need not be said.

    Raises:
        UserError: as `load_run` does.
    """
    given = [text.partition("=")[0].strip() for text in overrides]
    unneeded = [] if "run.directory" in given else ["run.directory=unused"]
    if not any(name.startswith("data.") and name.endswith("data_path") for name in given):
        unneeded += _UNNEEDED_DATA
    return load_run(files, [*unneeded, *overrides])


def read_autoencoder(file: str | Path) -> AutoencoderConfig:
    """The autoencoder of a model file or of a run's `config.yaml`.

    Raises:
        UserError: it holds another kind of model.
    """
    model = read_for_plan([file]).model
    if not isinstance(model, AutoencoderConfig):
        raise UserError(f"model.type is '{model.type}'", str(file), "give the model file of an autoencoder")
    return model


def plan_text(config: RunConfig, stages: Sequence[int], autoencoder: AutoencoderConfig | None = None) -> str:
    """For each number of stages the stages of our cut, and how even DeepSpeed's own cuts would be.

    Args:
        config: of a CALM or a baseline.
        stages: the numbers of stages.
        autoencoder: as in `layer_costs`.

    Raises:
        UserError: the run trains an autoencoder, or the model has too few layers.
    """
    if isinstance(config.model, AutoencoderConfig):
        raise UserError("an autoencoder is trained without pipeline stages", "model.type", "plan a calm or an ar model")
    costs = layer_costs(config, autoencoder)
    for number in stages:
        if not 1 <= number <= len(costs):
            works = f"the model has {len(costs)} layers: 1 to {len(costs)} stages work"
            raise UserError(f"{number} stages cannot be made", "the number of stages", works)
    parameters, flops = sum(cost.parameters for cost in costs), sum(cost.step_flops for cost in costs)
    left_out = ", the frozen encoder's left out" if isinstance(config.model, CalmConfig) and autoencoder is None else ""
    head = (
        f"{len(costs)} layers, {parameters:,} parameters, {short(flops)} FLOPs of forward and backward pass for a "
        f"sequence of {config.data.seq_length} tokens{left_out}"
    )
    return "\n\n".join([head, *(_stages_text(costs, number) for number in stages)])


def slowest_to_mean(costs: Sequence[LayerCost], stages: Sequence[range]) -> float:
    """FLOPs of the slowest stage over their mean: 1 where no stage ever waits for another."""
    flops = [sum(costs[layer].step_flops for layer in layers) for layers in stages]
    return max(flops) * len(flops) / sum(flops)


def _stages_text(costs: Sequence[LayerCost], number: int) -> str:
    ours = cut([cost.step_flops for cost in costs], number)
    mean = sum(cost.step_flops for cost in costs) / number
    rows = [("stage", "layers", "parameters", "FLOPs", "to the mean")]
    for stage, layers in enumerate(ours):
        held = [costs[layer] for layer in layers]
        flops = sum(cost.step_flops for cost in held)
        parameters = sum(cost.parameters for cost in held)
        names = compact([cost.name for cost in held])
        rows.append((str(stage), names, f"{parameters:,}", short(flops), f"{flops / mean:.3f}"))
    theirs = {
        "DeepSpeed's parameters": parameter_cut([cost.parameters for cost in costs], number),
        "DeepSpeed's uniform": uniform_cut(len(costs), number),
    }
    lines = [f"{number} stages", *table(rows), "slowest stage to the mean"]
    for name, stages in {"this plan": ours, **theirs}.items():
        lines.append(f"  {name:<23} {slowest_to_mean(costs, stages):.3f}")
    return "\n".join(lines)


def compact(names: Sequence[str]) -> str:
    """`layers.0, layers.1, final_norm` as `layers.0-1, final_norm`."""
    parts = []
    for _, group in groupby(names, lambda name: name.rstrip("0123456789")):
        first, *others = group
        parts.append(f"{first}-{others[-1].rpartition('.')[2]}" if others else first)
    return ", ".join(parts)


def table(rows: Sequence[tuple[str, ...]], left: int = 1) -> list[str]:
    """Lines of columns under each other: the column `left` to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(f"{cell:{'<' if place == left else '>'}{widths[place]}}" for place, cell in enumerate(row)).rstrip()
        for row in rows
    ]


def short(number: int) -> str:
    """Three digits behind the point and a unit letter: `51.283T`."""
    for size, letter in ((10**15, "P"), (10**12, "T"), (10**9, "G"), (10**6, "M")):
        if number >= size:
            return f"{number / size:.3f}{letter}"
    return f"{number:,}"
