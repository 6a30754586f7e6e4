"""Which task trains which kind of model."""

from calm_megatron.config.schema import ArConfig, AutoencoderConfig, RunConfig
from calm_megatron.data.data_splits import DataSplits
from calm_megatron.parallel.grid import Grid
from calm_megatron.train.ar_task import ArTask
from calm_megatron.train.autoencoder_task import AutoencoderTask
from calm_megatron.train.calm_task import CalmTask
from calm_megatron.train.task import Task


def build_task(config: RunConfig, data: DataSplits, grid: Grid) -> Task:
    """The task of the config's model."""
    if isinstance(config.model, AutoencoderConfig):
        return AutoencoderTask(config, config.model, data, grid)
    if isinstance(config.model, ArConfig):
        return ArTask(config, config.model, data, grid)
    return CalmTask(config, config.model, data, grid)
