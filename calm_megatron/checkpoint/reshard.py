"""Writes a checkpoint again, cut for other tensor ranks and into other files, with one weight in memory at a time.

A run needs no such copy to go on in another layout. It is for what reads files as they are: ranks that each read
their own, or programs that take a file for a tensor rank.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from calm_megatron.checkpoint import manifest, publish
from calm_megatron.checkpoint.files import FileEntry
from calm_megatron.checkpoint.inspect import differences
from calm_megatron.checkpoint.load import find_checkpoint, saved_config, saved_state
from calm_megatron.checkpoint.manifest import Manifest
from calm_megatron.checkpoint.meter import Meter, silent
from calm_megatron.checkpoint.pieces import KINDS, Place
from calm_megatron.checkpoint.saved_state import SavedState
from calm_megatron.checkpoint.shards import ShardWriter
from calm_megatron.checkpoint.store import newest_checkpoint, step_of
from calm_megatron.config.checks import check
from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import BackboneConfig, RunConfig
from calm_megatron.model.sharding import Sharding

_OPEN_FILES = 256
"""Written side by side; the source is read once for each so many, and systems allow a process some thousand."""
_COPIED = ("progress.json", "config.yaml")


def reshard(source: str | Path, target: Path, tensor_size: int, files: int, meter: Meter = silent) -> Path:
    """Write an equivalent checkpoint; returns the source that was read.

    The memory that this takes is a few times the largest weight. The result is read back, compared with the source bit
    by bit, and only then given its name.

    Args:
        source: checkpoint, or run folder for its newest.
        target: folder of the new checkpoint; to let a run go on from it, `<run>/checkpoints/step_<step>`.
        tensor_size: tensor ranks to cut for.
        files: of each tensor rank.
        meter: hears of the progress.

    Raises:
        UserError: the source is damaged, its model cannot be cut so, or the target exists or cannot be written.
    """
    checkpoint = find_checkpoint(source)
    config = saved_config(checkpoint)
    _check_cut(config, tensor_size, files)
    _check_target(target, step_of_progress(checkpoint))
    state = saved_state(checkpoint)
    aside = target.with_name(f".reshard.{target.name}.partial")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        shards = _write_shards(state, config, aside, tensor_size, files, meter)
        _write_facts(checkpoint, aside, shards, tensor_size, files)
        _demand_equal(state, aside, config, meter)
        publish.publish(aside, target)
        if target.parent.name == "checkpoints":
            publish.point_to(newest_checkpoint(target.parent), target.parent)
    except OSError as error:
        raise UserError(f"the checkpoint could not be written: {error}", str(target), "make room") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return checkpoint
