"""Train CALM or the token-level baseline: `python pretrain_calm.py MODEL.yaml MACHINE.yaml [section.key=value ...]`."""

from calm_megatron.config.errors import run_command_line
from calm_megatron.config.schema import BackboneConfig
from calm_megatron.train import command_line


def main() -> int:
    """Read the config, build the task, run the loop."""
    command = command_line.parse(
        "Train a continuous autoregressive language model on a frozen autoencoder, or (model.type: ar) the baseline.",
        "python pretrain_calm.py examples/models/calm_demo.yaml examples/machines/cpu.yaml data.data_path=data/corpus",
    )
    config = command.config
    if not isinstance(config.model, BackboneConfig):
        raise command_line.wrong_type(config, "calm or ar", "pretrain_ae.py")
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
