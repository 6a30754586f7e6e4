"""The command line of the pretraining entry points: `prog config.yaml [...] [section.key=value ...]`."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from calm_megatron.checkpoint.progress import Progress
from calm_megatron.config.errors import REQUEUE, UserError
from calm_megatron.config.files import load_run
from calm_megatron.config.schema import RunConfig
from calm_megatron.launch import rank
from calm_megatron.plan.report import read_for_plan


@dataclass(frozen=True)
class Command:
    """What the command line asks for."""

    config: RunConfig
    dry_run: int | None
    """Ranks of a dry run; none trains."""


def parse(description: str, example: str, arguments: Sequence[str] | None = None) -> Command:
    """The run that the command line describes; prints help and leaves when asked to."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"example:\n  {example}\n\nall settings: docs/config.md; several ranks: torchrun --nproc-per-node N ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", metavar="CONFIG.yaml", help="model file, machine file, ...")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override the files")
    how = "build every part of the model for N ranks on this process, compute nothing, and say what there would be"
    parser.add_argument("--dry-run", type=int, metavar="N", help=how)
    rank.prepare()
    given = parser.parse_intermixed_args(arguments)
    words = [*given.files, *given.overrides]
    files, overrides = [w for w in words if "=" not in w], [w for w in words if "=" in w]
    if given.dry_run is not None and given.dry_run < 1:
        raise UserError(f"a run has at least one rank, not {given.dry_run}", "--dry-run", "write, for example, 1024")
    # A dry run reads no data and writes no folder, so none need be named.
    read = load_run if given.dry_run is None else read_for_plan
    return Command(read(files, overrides), given.dry_run)


def exit_code(config: RunConfig, progress: Progress) -> int:
    """0 when the run is done, `REQUEUE` when a signal stopped it before."""
    return 0 if progress.step >= config.train.train_iters else REQUEUE


def wrong_type(config: RunConfig, expected: str, other: str) -> UserError:
    """The error of a config for the other entry point."""
    return UserError(
        f"model.type is '{config.model.type}', this program trains {expected}", "the config", f"use {other}"
    )
