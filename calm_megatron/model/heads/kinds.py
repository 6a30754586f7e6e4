"""The heads by their type in the config."""

from collections.abc import Callable

from calm_megatron.config.schema import CalmConfig, HeadConfig
from calm_megatron.model.heads.diffusion import DiffusionHead
from calm_megatron.model.heads.energy import EnergyHead
from calm_megatron.model.heads.flow import FlowHead
from calm_megatron.model.heads.head import Head, holds_all
from calm_megatron.parallel.tensor_ranks import TensorRanks

HEADS: dict[str, type[EnergyHead | DiffusionHead | FlowHead]] = {
    "energy": EnergyHead,
    "diffusion": DiffusionHead,
    "flow": FlowHead,
}


def build_head(config: CalmConfig, ranks: TensorRanks | None = None, holds: Callable[[str], bool] = holds_all) -> Head:
    """The head of a model, or the parts of it that a pipeline stage holds."""
    return HEADS[config.head.type](config, ranks or TensorRanks(), holds)


def term_names(head: HeadConfig) -> tuple[str, ...]:
    """Names of the training terms, the loss first."""
    return ("loss", *HEADS[head.type].part_names)
