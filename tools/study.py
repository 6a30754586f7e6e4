"""Train a grid of runs and compare them: BrierLM against training FLOPs and against cross-entropy, table and plots.

Runs that are done stay; one that was interrupted goes on where it was.

Example: python tools/study.py examples/study/study.yaml --output runs/study --jobs 2
"""

import argparse
import dataclasses
import json
import shlex
import signal
import time
from pathlib import Path

from calm_megatron.config.atomic import demand_writable, write_output
from calm_megatron.config.errors import UserError, run_command_line
from calm_megatron.study.grid import Cell, read_study
from calm_megatron.study.runner import command, is_done, run_all

ROOT = Path(__file__).resolve().parent.parent


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("study", type=Path, metavar="STUDY.yaml", help="the grids of runs; see docs/study.md")
    add("--output", type=Path, required=True, metavar="DIR", help="folder of the runs, the table and the plots")
    add("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    add("--show", action="store_true", help="print the command line of every run, and stop")
    add("--no-train", action="store_true", help="make table and plots of runs that are done")
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        raise UserError(f"jobs is {arguments.jobs}", "--jobs", "give 1 or more")
    return arguments


class Progress:
    """A line for each run that begins or ends, with the time left as the runs so far let expect."""

    def __init__(self, cells: list[Cell], jobs: int) -> None:
        self.total, self.done = len(cells), sum(map(is_done, cells))
        self.jobs, self.before, self.started = jobs, self.done, time.monotonic()
        print(f"{self.total} runs, {self.done} of them done before", flush=True)

    def __call__(self, cell: Cell, change: str, seconds: float) -> None:
        """Say it."""
        self.done += change == "done"
        line = f"{time.strftime('%H:%M:%S')}  {self.done:>3}/{self.total}  {cell.name} {change}"
        if change == "done":
            left = (time.monotonic() - self.started) / (self.done - self.before) * (self.total - self.done)
            line += f" in {seconds / 60:.1f} min, about {left / 60:.0f} min left"
        print(line, flush=True)


def main() -> None:
    """Train, compare, write."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the runs save before the study ends
    arguments = parse_arguments()
    cells = read_study(arguments.study, arguments.output)
    if arguments.show:
        for cell in cells:
            print(shlex.join(command(cell, Path(""))))
        return
    for name in ("results.json", "table.md"):
        demand_writable(arguments.output / name)
    if not arguments.no_train:
        run_all(cells, arguments.jobs, ROOT, Progress(cells, arguments.jobs))
    # Imported here because plotting takes seconds, which a wrong study should not cost.
    from calm_megatron.study.plots import draw
    from calm_megatron.study.results import read_autoencoder_runs, read_language_runs, table

    language = read_language_runs(cells)
    text = table(language, read_autoencoder_runs(cells))
    rows = [
        {
            "run": run.cell.name,
            "parameters": run.parameters,
            "scores": run.scores,
            "points": list(map(dataclasses.asdict, run.points)),
        }
        for run in language
    ]
    write_output(arguments.output / "results.json", json.dumps(rows, indent=1).encode() + b"\n")
    write_output(arguments.output / "table.md", text.encode())
    files = draw(language, arguments.output)
    print(f"\n{text}\nwrote {arguments.output / 'table.md'}, {', '.join(map(str, files))}")


if __name__ == "__main__":
    run_command_line(main)
