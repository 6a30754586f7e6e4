"""Train the autoencoder: `python pretrain_ae.py MODEL.yaml MACHINE.yaml [section.key=value ...]`."""

from calm_megatron.config.errors import run_command_line
from calm_megatron.config.schema import AutoencoderConfig
from calm_megatron.train import command_line


def main() -> int:
    """Read the config, build the task, run the loop."""
    command = command_line.parse(
        "Train the autoencoder that turns K tokens into one vector and back.",
        "python pretrain_ae.py examples/models/ae_demo.yaml examples/machines/cpu.yaml data.data_path=data/corpus",
    )
    config = command.config
    if not isinstance(config.model, AutoencoderConfig):
        raise command_line.wrong_type(config, "autoencoder", "pretrain_calm.py")
    if command.dry_run is not None:
        # Imported here because torch and the engines take seconds, which a wrong config should not cost.
        from calm_megatron.train.dry_run import dry_run_text

        print(dry_run_text(config, command.dry_run))
        return 0
    # Imported here for the same reason.
    from calm_megatron.train import loop
    from calm_megatron.train.tasks import build_task

    return command_line.exit_code(config, loop.run(build_task, config))


if __name__ == "__main__":
    run_command_line(main)
