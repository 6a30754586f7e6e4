"""Train the runs of a study, some at a time, each by the command line that a user would give."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from calm_megatron.config.errors import UserError
from calm_megatron.study.grid import Cell, settings_that_differ

RESULT = "evaluation.json"
"""What a run writes at its end."""
OUTPUT = "output.txt"
"""What its command line printed."""
_POLL_SECONDS = 0.2


class OnChange(Protocol):
    """Told when a run begins and when it has ended."""

    def __call__(self, cell: Cell, change: str, seconds: float) -> None:
        """`change` is "starts", "goes on" or "done"; seconds are those of its process."""
        ...


@dataclass(frozen=True)
class _Process:
    cell: Cell
    process: subprocess.Popen[bytes]
    started: float


def is_done(cell: Cell) -> bool:
    """Whether the run came to its end."""
    return (cell.folder / RESULT).exists()


def command(cell: Cell, root: Path) -> list[str]:
    """The run's command line, from the project's folder."""
    return [sys.executable, str(root / cell.config.entry_point), *cell.files, *cell.overrides]


def run_all(cells: Sequence[Cell], jobs: int, root: Path, on_change: OnChange) -> None:
    """Train what is not done yet; a run that was interrupted goes on where it was.

    Args:
        cells: the runs.
        jobs: how many at a time.
        root: folder of the entry points.
        on_change: progress.

    Raises:
        UserError: the folder of a run holds other settings, or a run failed; the others that were going have saved.
    """
    for cell in cells:
        if names := settings_that_differ(cell):
            raise UserError(
                f"the run was made with other settings: {', '.join(names)}",
                str(cell.folder),
                "move the folder away, or give the study another --output",
            )
    waiting, running = [cell for cell in cells if not is_done(cell)], list[_Process]()
    try:
        while waiting or running:
            undone = {cell.name for cell in waiting} | {each.cell.name for each in running}
            ready = [cell for cell in waiting if cell.after not in undone]
            for cell in ready[: jobs - len(running)]:
                waiting.remove(cell)
                on_change(cell, "goes on" if cell.folder.exists() else "starts", 0.0)
                running.append(_start(cell, root))
            time.sleep(_POLL_SECONDS)
            for ended in [each for each in running if each.process.poll() is not None]:
                running.remove(ended)
                _demand_success(ended)
                on_change(ended.cell, "done", time.monotonic() - ended.started)
    finally:
        # A run that is asked to stop finishes its step and saves.
        for each in running:
            each.process.send_signal(signal.SIGTERM)
        for each in running:
            each.process.wait()


def _start(cell: Cell, root: Path) -> _Process:
    cell.folder.mkdir(parents=True, exist_ok=True)
    with (cell.folder / OUTPUT).open("ab") as output:
        # A group of its own: Ctrl-C at the study must not reach the run twice.
        process = subprocess.Popen(
            command(cell, root),
            stdout=output,
            stderr=output,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])},
            process_group=0,
        )
    return _Process(cell, process, time.monotonic())


def _demand_success(ended: _Process) -> None:
    if ended.process.returncode == 0 and is_done(ended.cell):
        return
    file = ended.cell.folder / OUTPUT
    last = file.read_text(errors="replace").strip().splitlines()[-3:]
    raise UserError(
        f"the run {ended.cell.name} ended with exit code {ended.process.returncode}: {' / '.join(last)}",
        str(file),
        "mend the cause and start the study again; finished runs stay, the others go on",
    )
