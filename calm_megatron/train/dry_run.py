"""A run without machines: the real model in any layout, on one process, with nothing computed.

The weights have shapes and no memory (torch's meta device), the ranks exist in name only (torch's fake process group).
What a start on the machines would refuse is refused here; what depends on machines and data is not looked at.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.parallel_state import RankGenerator
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from calm_megatron.checkpoint.load import saved_config
from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import ArConfig, AutoencoderConfig, BackboneConfig, CalmConfig, RunConfig
from calm_megatron.data.sampler import BatchSchedule
from calm_megatron.model.autoencoder import Autoencoder, FrozenAutoencoder
from calm_megatron.model.names import AR_ENTRIES, CALM_ENTRIES, entry_of
from calm_megatron.model.sharding import Sharding
from calm_megatron.parallel import grid as parallel
from calm_megatron.parallel.grid import Grid
from calm_megatron.plan.activations import activation_memory
from calm_megatron.plan.memory import state_memory
from calm_megatron.plan.report import compact, table
from calm_megatron.plan.stages import stage_layers
from calm_megatron.train.ar_task import new_ar
from calm_megatron.train.calm_task import new_calm
from calm_megatron.train.pipeline_engine import topology_of


@dataclass(frozen=True)
class Part:
    """What the ranks at one place of the model hold: they differ in their data only."""

    stage: int
    tensor_rank: int
    ranks: tuple[int, ...]
    """By their data rank."""
    shapes: dict[str, tuple[int, ...]]
    """Of the weights that are built there, by name."""
    cut: frozenset[str]
    """Weights of which other tensor ranks hold other parts."""

    @property
    def numbers(self) -> int:
        """In all weights."""
        return sum(map(math.prod, self.shapes.values()))

    def file(self, rank: int) -> str:
        """The file of a rank in a checkpoint."""
        return f"rank_{rank:05d}.safetensors"


@dataclass(frozen=True)
class DryRun:
    """What was built."""

    world_size: int
    data_ranks: int
    parts: tuple[Part, ...]
    parameters: int
    """Of the whole model, put together from the parts."""
    micro_batches: int
    """Of a rank in a step, at the end of the ramp-up."""

    def file_weights(self) -> dict[str, tuple[str, ...]]:
        """For each rank's file the weights of which it holds a run."""
        return {part.file(rank): tuple(part.shapes) for part in self.parts for rank in part.ranks}


def dry_run(config: RunConfig, world_size: int, autoencoder: AutoencoderConfig | None = None) -> DryRun:
    """Build every part of the model as the ranks would.

    Args:
        config: of the run.
        world_size: ranks.
        autoencoder: CALM's; none takes the published one with CALM's patch, latent and vocabulary sizes.

    Raises:
        UserError: what a start with so many ranks would refuse.
    """
    layout, train = config.parallel, config.train
    tensor_size, stages = layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size
    model_ranks = tensor_size * stages
    if world_size % model_ranks:
        raise UserError(
            f"{model_ranks} ranks hold one model ({tensor_size} tensor ranks x {stages} stages), which does not divide "
            f"{world_size}",
            "the number of ranks",
            f"take a multiple of {model_ranks}",
        )
    data_ranks = world_size // model_ranks
    BatchSchedule(train.global_batch_size, train.rampup_batch_size, train.micro_batch_size, data_ranks)
    parts: list[Part] = []
    for stage in range(stages):
        for tensor_rank in range(tensor_size):
            first = stage * data_ranks * tensor_size + tensor_rank
            with _as_rank(first, world_size, tensor_size, stages) as grid:
                if not parts:
                    _demand_same_places(grid)
                parts.append(_built(config, grid, autoencoder))
    micro_batches = train.global_batch_size // (train.micro_batch_size * data_ranks)
    return DryRun(world_size, data_ranks, tuple(parts), _whole_model(config, parts), micro_batches)


@contextmanager
def _as_rank(rank: int, world_size: int, tensor_size: int, stages: int) -> Iterator[Grid]:
    """The grid as that rank would see it; every collective does nothing."""
    if dist.is_initialized():
        raise RuntimeError("a dry run needs a process without process groups")
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        yield replace(parallel.start(1.0, tensor_size, stages), device=torch.device("meta"))
    finally:
        parallel.stop()


def _built(config: RunConfig, grid: Grid, autoencoder: AutoencoderConfig | None) -> Part:
    with torch.device("meta"):
        module = _module(config, grid, autoencoder)
    sharding = getattr(module, "sharding", None)
    shapes = {name: tuple(weight.shape) for name, weight in module.named_parameters()}
    first = grid.rank
    return Part(
        stage=grid.stages.rank,
        tensor_rank=grid.tensor_rank,
        ranks=tuple(first + grid.tensor_size * number for number in range(grid.data_parallel_size)),
        shapes=shapes,
        cut=frozenset(name for name in shapes if sharding is not None and sharding.is_cut(name)),
    )


def _module(config: RunConfig, grid: Grid, autoencoder: AutoencoderConfig | None) -> nn.Module:
    model = config.model
    if isinstance(model, AutoencoderConfig):
        return Autoencoder(model)
    if isinstance(model, ArConfig):
        return new_ar(config, model, grid)
    frozen = FrozenAutoencoder(Autoencoder(autoencoder or published_autoencoder(model)))
    return new_calm(config, model, frozen, grid)


def published_autoencoder(model: CalmConfig) -> AutoencoderConfig:
    """The published one, with CALM's patch, latent and vocabulary sizes."""
    return AutoencoderConfig(vocab_size=model.vocab_size, patch_size=model.patch_size, latent_size=model.latent_size)


def _demand_same_places(grid: Grid) -> None:
    """Every rank's place by megatron-core's order of ranks and by DeepSpeed's, which must agree."""
    sizes = {"tp": grid.tensor_size, "dp": grid.data_parallel_size, "pp": grid.stages.size}
    generator = RankGenerator(ep=1, cp=1, order="tp-cp-ep-dp-pp", **sizes)
    topology = topology_of(grid)
    for axis, name in (("tp", "model"), ("dp", "data"), ("pp", "pipe")):
        theirs = {tuple(group) for group in topology.get_axis_comm_lists(name)}
        ours = {tuple(group) for group in generator.get_ranks(axis) if len(group) > 1}
        if ours != {group for group in theirs if len(group) > 1}:
            raise RuntimeError(f"DeepSpeed and megatron-core group the {name} ranks differently")


def _whole_model(config: RunConfig, parts: list[Part]) -> int:
    """Parameters of the model; every weight must be at one stage, and its parts must make up one whole.

    Raises:
        RuntimeError: they do not, or the table of names does not know a weight.
    """
    if isinstance(config.model, AutoencoderConfig):
        return parts[0].numbers
    entries = CALM_ENTRIES if isinstance(config.model, CalmConfig) else AR_ENTRIES
    stage_of: dict[str, int] = {}
    parameters = 0
    for part in parts:
        for name, shape in part.shapes.items():
            if stage_of.setdefault(name, part.stage) != part.stage:
                raise RuntimeError(f"{name} is at two stages: {stage_of[name]} and {part.stage}")
            entry_of(name, entries)
            if part.tensor_rank == 0:
                parameters += math.prod(_whole_shape(config, name, shape))
            elif shape != next(p for p in parts if p.stage == part.stage).shapes[name]:
                raise RuntimeError(f"the tensor ranks hold parts of different shapes of {name}")
    return parameters


def _whole_shape(config: RunConfig, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    assert isinstance(config.model, BackboneConfig)
    size = config.parallel.tensor_model_parallel_size
    return Sharding(config.model, 0, size).whole_shape(name, torch.Size(shape)) if size > 1 else shape


def dry_run_text(config: RunConfig, world_size: int) -> str:
    """What was built for each place of the model, which files a checkpoint will have, and the stages' memory.

    Raises:
        UserError: as `dry_run` does.
    """
    autoencoder, source = _autoencoder_of(config)
    built = dry_run(config, world_size, autoencoder)
    rows = [("stage", "ranks", "tensor", "weights", "cut", "numbers", "layers")]
    layers = _layers_by_stage(config, autoencoder)
    for part in built.parts:
        step = part.ranks[1] - part.ranks[0] if len(part.ranks) > 1 else 1
        ranks = f"{part.ranks[0]}" if len(part.ranks) == 1 else f"{part.ranks[0]} to {part.ranks[-1]} by {step}"
        sizes = (str(len(part.shapes)), str(len(part.cut)), f"{part.numbers:,}")
        rows.append((str(part.stage), ranks, str(part.tensor_rank), *sizes, layers[part.stage]))
    files = sorted(built.file_weights())
    tensor, stages = config.parallel.tensor_model_parallel_size, config.parallel.pipeline_model_parallel_size
    lines = [
        f"dry run on {world_size} ranks: {tensor} tensor x {stages} pipeline x {built.data_ranks} data, "
        f"{built.micro_batches} micro-batches a step; {built.parameters:,} parameters were built{source}",
        *table(rows, left=6),
        f"a checkpoint: {files[0]} to {files[-1]}, {len(files)} files, in each a run of the weights of its rank",
    ]
    if isinstance(config.model, CalmConfig):
        lines += ["", *_memory_lines(config, built.data_ranks, autoencoder)]
    return "\n".join(lines)


def _autoencoder_of(config: RunConfig) -> tuple[AutoencoderConfig | None, str]:
    """That of CALM, and a remark if it is not the trained one."""
    model = config.model
    if not isinstance(model, CalmConfig):
        return None, ""
    if Path(model.autoencoder).exists():
        found = saved_config(model.autoencoder).model
        assert isinstance(found, AutoencoderConfig)
        return found, ""
    return published_autoencoder(model), f" ({model.autoencoder} is not there: the published autoencoder is assumed)"


def _layers_by_stage(config: RunConfig, autoencoder: AutoencoderConfig | None) -> list[str]:
    stages = config.parallel.pipeline_model_parallel_size
    if isinstance(config.model, AutoencoderConfig):
        return ["all"]
    return [compact(names) for names in stage_layers(config, stages, autoencoder)]


def _memory_lines(config: RunConfig, data_ranks: int, autoencoder: AutoencoderConfig | None) -> list[str]:
    lines = ["GB on a rank at the peak, by the formulas of tools/plan.py"]
    for stage in range(config.parallel.pipeline_model_parallel_size):
        state = state_memory(config, data_ranks, stage, autoencoder).total / 1e9
        try:
            work = f"{activation_memory(config, data_ranks, stage, autoencoder).total / 1e9:.2f} activations"
        except TypeError:
            work = "activations unknown for this head"
        lines.append(f"  stage {stage}: {state:.2f} weights, gradients and optimizer, {work}")
    return lines
