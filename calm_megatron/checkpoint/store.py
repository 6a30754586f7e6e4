"""Checkpoints of a run: written aside by all ranks, published by one rename, verified when they are read.

<run>/checkpoints/
    latest                    name of the newest checkpoint
    step_00001000/
        rank_00000.safetensors    this rank's run of each weight and its moments, in fp32 (shards.py)
        progress.json             place in the run
        config.yaml               the whole config
        manifest.json             layout, fingerprints, size and checksum of each file
"""

import contextlib
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from calm_megatron.checkpoint import manifest, publish
from calm_megatron.checkpoint.files import FileEntry
from calm_megatron.checkpoint.manifest import Manifest
from calm_megatron.checkpoint.pieces import Piece
from calm_megatron.checkpoint.progress import Progress
from calm_megatron.checkpoint.saved_state import SavedState
from calm_megatron.checkpoint.shards import write_shard
from calm_megatron.checkpoint.snapshot import Snapshot
from calm_megatron.config.errors import UserError
from calm_megatron.config.files import load_run, to_tree, to_yaml
from calm_megatron.config.schema import BackboneConfig, RunConfig
from calm_megatron.parallel.grid import Grid

_NAME = re.compile(r"step_(\d{8,})")
_FAILED = "the checkpoint could not be written"


class Saveable(Protocol):
    """What the store needs of an engine."""

    def own_pieces(self) -> list[Piece]:
        """This rank's share of weights and moments; those of all ranks make up the model, each element once."""

    def scalars(self) -> dict[str, Any]:
        """The rest of its state, the same on all ranks."""

    def restore(self, state: SavedState, scalars: Mapping[str, Any]) -> None:
        """Take over saved weights, moments and scalars, whatever the layout that saved them."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was published."""

    path: Path
    stall: float
    """Seconds for which training stood still."""
    seconds: float
    """From the call to the publication."""
    bytes: int
    """Of all shards."""


@dataclass
class _Pending:
    """A save whose shards are being written."""

    progress: Progress
    scalars: dict[str, Any]
    entry: "Future[FileEntry]"
    started: float
    stall: float


class CheckpointStore:
    """The checkpoints of one run; all ranks call its methods together."""

    def __init__(self, config: RunConfig, grid: Grid, fingerprints: Mapping[str, str] | None = None) -> None:
        self.config, self.grid = config, grid
        self.fingerprints = dict(fingerprints or {})
        self.directory = checkpoints_of(Path(config.run.directory))
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: _Pending | None = None
        self._snapshot = Snapshot()
        self._deletions: list[Future[None]] = []

    def begin(self, engine: Saveable, progress: Progress) -> Saved | None:
        """Save. Returns what was published meanwhile; errors as in `poll`.

        With `checkpoint.async_save` training goes on from a copy in the host's memory and `poll` or `finish` publishes;
        what may return is the save before. Else this waits for the disk, and publishes and returns its own.
        """
        before = self.finish()
        started = time.monotonic()
        aside = self._aside(progress)
        self._main_first(lambda: publish.make_room(aside))
        pieces = engine.own_pieces()
        if self.config.checkpoint.async_save:
            pieces = self._snapshot.take(pieces)
        shard = aside / f"rank_{self.grid.rank:05d}.safetensors"
        entry = self._writer.submit(_write_and_verify, shard, pieces)
        self._pending = _Pending(progress, engine.scalars(), entry, started, stall=time.monotonic() - started)
        return before if self.config.checkpoint.async_save else self.finish()

    def poll(self) -> Saved | None:
        """Publish the pending save once all ranks have written their shards.

        Raises:
            UserError: a rank could not write its own.
        """
        if self._pending is None:
            return None
        written = torch.tensor(int(self._pending.entry.done()), device=self.grid.device)
        dist.all_reduce(written, op=dist.ReduceOp.MIN)
        return self._end_pending() if written.item() else None

    def finish(self) -> Saved | None:
        """Wait for the pending save, if there is one, publish it, and wait for deletions; errors as in `poll`."""
        saved = self._end_pending()
        self._wait_for_deletions()
        return saved

    def _end_pending(self) -> Saved | None:
        if self._pending is None:
            return None
        pending, self._pending = self._pending, None
        since = time.monotonic()
        error = pending.entry.exception()
        own = error if error is not None else pending.entry.result()
        entries: list[Any] = [None] * self.grid.world_size
        dist.all_gather_object(entries, f"rank {self.grid.rank}: {error}" if error is not None else own)
        failures = [entry for entry in entries if isinstance(entry, str)]
        aside = self._aside(pending.progress)
        final = self.directory / aside.name.removeprefix(".").removesuffix(".partial")
        try:
            if failures:
                self._refuse("; ".join(failures))
            self._main_first(lambda: self._publish(pending, final, entries))
        except UserError:
            if self.grid.is_main:  # on a full disk, half a checkpoint takes the room of other files of the run
                shutil.rmtree(aside, ignore_errors=True)
            raise
        now = time.monotonic()
        size = sum(entry.bytes for entry in entries)
        return Saved(final, pending.stall + now - since, now - pending.started, size)

    def resume(self, engine: Saveable, tell: Callable[[str], None] = lambda message: None) -> Progress | None:
        """Load the newest checkpoint that is whole; None when the run has none. `tell` hears of damaged ones.

        These get another name, if there is a whole one: a run that has none must not begin anew by itself.

        Raises:
            UserError: the checkpoint is of another model or of other data, or none is whole.
            Unreadable: a rank cannot read one that may be whole.
        """
        damaged: dict[Path, str] = {}
        for folder in reversed(self._published()):
            if damage := self._damage(folder):
                damaged[folder] = damage
                continue
            for wrong, what in damaged.items():
                tell(f"{wrong.name} is damaged and left out: {what}")
                self._main_first(partial(self._set_aside, wrong), f"{wrong.name} could not be renamed")
            return self._load(engine, folder)
        if damaged:
            problems = [f"{folder.name}: {what}" for folder, what in damaged.items()]
            raise UserError(
                "no checkpoint of the run is whole:\n  " + "\n  ".join(problems),
                str(self.directory),
                "bring one back from a copy, or start in a new run.directory",
            )
        return None

    def _set_aside(self, damaged: Path) -> None:
        publish.set_aside(damaged)
        publish.point_to(newest_checkpoint(self.directory), self.directory)

    def _load(self, engine: Saveable, folder: Path) -> Progress:
        check_same_run(self.config, folder)
        found = Manifest.load(folder)
        if not found.engine:
            raise UserError(
                "this checkpoint was taken in from another place and holds weights alone: a run cannot go on from it",
                str(folder),
                "start in a new run.directory, with checkpoint.pretrained_checkpoint naming this one",
            )
        self._demand_same_sources(found, folder)
        model = self.config.model if isinstance(self.config.model, BackboneConfig) else None
        engine.restore(SavedState(found.shards(folder), model), found.engine)
        return Progress.load(folder / "progress.json")

    def _demand_same_sources(self, found: Manifest, folder: Path) -> None:
        changed = [
            name
            for name, fingerprint in self.fingerprints.items()
            if found.fingerprints.get(name, fingerprint) != fingerprint
        ]
        if changed and not self.config.checkpoint.accept_changed_sources:
            raise UserError(
                f"since the checkpoint was saved, {' and '.join(changed)} changed: the run would go on with others",
                str(folder),
                "bring them back, start in a new run.directory, or set checkpoint.accept_changed_sources=true",
            )

    def _published(self) -> list[Path]:
        """The checkpoints as the main rank sees them: other nodes may know a shared folder of a while ago."""
        names = [[path.name for path in published(self.directory)]]
        dist.broadcast_object_list(names, src=0)
        return [self.directory / name for name in names[0]]

    def _damage(self, folder: Path) -> str:
        """What is wrong with a checkpoint, looked at by all ranks, each at its share of the files.

        Raises:
            Unreadable: the main rank does not see it, or nobody can know.
        """
        everyone: list[list[tuple[str, str]]] = [[] for _ in range(self.grid.world_size)]
        dist.all_gather_object(everyone, _problems(folder, self.grid.rank, self.grid.world_size))
        reported = [(rank, *problem) for rank, problems in enumerate(everyone) for problem in problems]
        unproven = [_unproven(folder, reported) if self.grid.is_main else None]
        dist.broadcast_object_list(unproven, src=0)
        if unproven[0] is not None:
            to_do = "see whether all nodes see the same files, and start again: none was changed"
            raise Unreadable(unproven[0], str(folder), to_do)
        return "; ".join(dict.fromkeys(what for _, _, what in reported))

    def _layout(self) -> dict[str, Any]:
        parallel = self.config.parallel
        return {
            "world_size": self.grid.world_size,
            "tensor_model_parallel_size": self.grid.tensor_size,
            "pipeline_model_parallel_size": self.grid.stages.size,
            "data_parallel_size": self.grid.data_parallel_size,
            "zero_stage": parallel.zero_stage,
            "precision": self.config.train.precision,
        }

    def _aside(self, progress: Progress) -> Path:
        return self.directory / f".step_{progress.step:08d}.partial"

    def _publish(self, pending: _Pending, final: Path, shards: Sequence[FileEntry]) -> None:
        aside = self._aside(pending.progress)
        pending.progress.save(aside / "progress.json")
        (aside / "config.yaml").write_text(to_yaml(self.config))
        others = [FileEntry.of(aside / name) for name in ("progress.json", "config.yaml")]
        Manifest(
            layout=self._layout(),
            engine=pending.scalars,
            fingerprints=self.fingerprints,
            files=(*shards, *others),
        ).save(aside)
        for name in ("progress.json", "config.yaml", "manifest.json"):
            publish.sync(aside / name)
        publish.publish(aside, final)
        publish.point_to(final, self.directory)
        for old in self._outlived():
            # To give back a large file's blocks takes a while, and training waits here.
            # What a reader on a network drive still holds open stays for a while: the next save tries again.
            self._deletions.append(self._writer.submit(shutil.rmtree, publish.withdraw(old), ignore_errors=True))

    def _wait_for_deletions(self) -> None:
        while self._deletions:
            self._deletions.pop().result()

    def _outlived(self) -> list[Path]:
        """Checkpoints that are neither among the last nor kept for good."""
        keep_every = self.config.checkpoint.keep_every
        older = published(self.directory)[: -self.config.checkpoint.keep_last]
        return [path for path in older if not (keep_every and step_of(path) % keep_every == 0)]

    def _main_first(self, work: Callable[[], None], failed: str = _FAILED) -> None:
        """The main rank works, the others wait; a failure there is the same failure everywhere."""
        failure: list[str | None] = [None]
        if self.grid.is_main:
            try:
                work()
            except OSError as error:
                failure = [f"{error}"]
        dist.broadcast_object_list(failure, src=0)
        if failure[0] is not None:
            self._refuse(failure[0], failed)

    def _refuse(self, reason: str, failed: str = _FAILED) -> None:
        raise UserError(
            f"{failed}: {reason}",
            str(self.directory),
            "make room or mend the folder's rights; earlier checkpoints are intact",
        )


class Unreadable(UserError):
    """A checkpoint that may be whole cannot be read now; another start may do better."""

    exit_code = 1


def _problems(folder: Path, number: int, count: int) -> list[tuple[str, str]]:
    """Name and problem of those of a checkpoint's files that fall to rank `number`."""
    try:
        found = Manifest.load(folder)
    except UserError as error:
        return [(manifest.FILE, error.what)]
    return list(found.problem_files(folder, number, count).items())


def _unproven(folder: Path, reported: Sequence[tuple[int, str, str]]) -> str | None:
    """Of problems (rank, file, what), the first that the file itself does not show; none if all are damage."""
    for rank, name, what in reported:
        try:
            if name == manifest.FILE:
                is_whole = _is_whole_manifest(folder)
            else:
                is_whole = any(entry.name == name and not entry.damage(folder) for entry in Manifest.load(folder).files)
        except OSError as error:
            return f"rank {rank}: {what}; the main rank: {error}"
        if is_whole:
            return f"rank {rank}: {what}; but the main rank reads it well"
    return None


def _is_whole_manifest(folder: Path) -> bool:
    """Whether it can be loaded; raises an `OSError` if it is there and cannot be read."""
    with contextlib.suppress(FileNotFoundError):
        (folder / manifest.FILE).read_bytes()
    try:
        Manifest.load(folder)
    except UserError:
        return False
    return True


def checkpoints_of(run_directory: Path) -> Path:
    """Folder of a run's checkpoints."""
    return run_directory / "checkpoints"


def published(directory: Path) -> list[Path]:
    """The checkpoints in a folder of checkpoints, the oldest first."""
    found = [path for path in directory.iterdir() if _NAME.fullmatch(path.name)] if directory.is_dir() else []
    return sorted(found, key=step_of)


def newest_checkpoint(directory: Path) -> Path | None:
    """The newest published checkpoint in a folder of checkpoints."""
    return next(reversed(published(directory)), None)


def step_of(checkpoint: Path) -> int:
    """The training step of a checkpoint folder."""
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise UserError("this is no checkpoint folder of a run", str(checkpoint), "its name should be step_<number>")
    return int(match.group(1))


def check_same_run(config: RunConfig, checkpoint: Path) -> None:
    """Raise a `UserError` when a checkpoint belongs to another model or another data order."""
    saved = to_tree(load_run([checkpoint / "config.yaml"]))
    now = to_tree(config)
    kind = saved["model"]["type"]
    model = saved["model"] if kind == now["model"]["type"] else {"type": kind}
    fixed = {"model": model, "data": saved["data"], "run": {"seed": saved["run"]["seed"]}}
    problems = [
        f"{section}.{name} was {value!r} and is now {now[section][name]!r}"
        for section, values in fixed.items()
        for name, value in values.items()
        if now[section].get(name) != value
    ]
    if problems:
        raise UserError(
            "the run folder holds checkpoints of another run:\n  " + "\n  ".join(problems),
            str(checkpoint),
            "set run.directory to a new folder, or take these settings back",
        )


def _write_and_verify(path: Path, pieces: Sequence[Piece]) -> FileEntry:
    """Write a shard and read it back: nothing older is deleted for the sake of a file that cannot be read."""
    values = {piece.place: piece.values for piece in pieces}
    entry = write_shard(path, list(values), lambda kind, place: values[place][kind])
    if problem := entry.problem(path.parent):
        raise OSError(f"{problem}, as it is read back")
    return entry
