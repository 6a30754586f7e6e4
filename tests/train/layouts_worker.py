"""Ranks of the layout tests: trains many small runs, one after the other, in one launch.

Usage: torchrun ... layouts_worker.py JOBS.json, with a list of {"files": [...], "overrides": [...]}.
"""

import json
import sys
from pathlib import Path

from calm_megatron.config.errors import run_command_line
from calm_megatron.config.files import load_run
from calm_megatron.parallel import grid as parallel
from calm_megatron.train import loop
from calm_megatron.train.tasks import build_task


def main() -> None:
    """Run the jobs in their order."""
    for job in json.loads(Path(sys.argv[1]).read_text()):
        loop.run(build_task, load_run(job["files"], job["overrides"]))
    parallel.stop()


if __name__ == "__main__":
    run_command_line(main)
