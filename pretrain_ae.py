"""Train the autoencoder: `python pretrain_ae.py MODEL.yaml MACHINE.yaml [section.key=value ...]`."""

from calm_megatron.config.errors import run_command_line
from calm_megatron.config.schema import AutoencoderConfig, RunConfig
from calm_megatron.train import command_line


def main() -> None:
    """Read the config, build the task, run the loop."""
    config = command_line.parse(
        "Train the autoencoder that turns K tokens into one vector and back.",
        "python pretrain_ae.py examples/models/ae_demo.yaml examples/machines/cpu.yaml data.data_path=data/corpus",
    )
    model = config.model
    if not isinstance(model, AutoencoderConfig):
        raise command_line.wrong_type(config, "autoencoder", "pretrain_calm.py")
    # Heavy imports wait until the config is known to be good.
    from calm_megatron.data.loader import DataSplits
    from calm_megatron.parallel.grid import Grid
    from calm_megatron.train import loop
    from calm_megatron.train.autoencoder_task import AutoencoderTask

    def task(config: RunConfig, data: DataSplits, grid: Grid) -> AutoencoderTask:
        return AutoencoderTask(config, model, data, grid)

    loop.run(task, config)


if __name__ == "__main__":
    run_command_line(main)
