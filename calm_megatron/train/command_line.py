"""The command line of the pretraining entry points: `prog config.yaml [...] [section.key=value ...]`."""

import argparse
from collections.abc import Sequence

from calm_megatron.checkpoint.progress import Progress
from calm_megatron.config.errors import REQUEUE, UserError
from calm_megatron.config.files import load_run
from calm_megatron.config.schema import RunConfig
from calm_megatron.launch import rank


def parse(description: str, example: str, arguments: Sequence[str] | None = None) -> RunConfig:
    """The run that the command line describes; prints help and leaves when asked to."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"example:\n  {example}\n\nall settings: docs/config.md; several ranks: torchrun --nproc-per-node N ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", metavar="CONFIG.yaml", help="model file, machine file, ...")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override the files")
    rank.prepare()
    given = parser.parse_args(arguments)
    words = [*given.files, *given.overrides]
    files = [word for word in words if "=" not in word]
    return load_run(files, [word for word in words if "=" in word])


def exit_code(config: RunConfig, progress: Progress) -> int:
    """0 when the run is done, `REQUEUE` when a signal stopped it before."""
    return 0 if progress.step >= config.train.train_iters else REQUEUE


def wrong_type(config: RunConfig, expected: str, other: str) -> UserError:
    """The error of a config for the other entry point."""
    return UserError(
        f"model.type is '{config.model.type}', this program trains {expected}", "the config", f"use {other}"
    )
