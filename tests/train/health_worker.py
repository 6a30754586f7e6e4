"""Ranks of the health tests: small runs in which one step of one data rank goes wrong.

Usage: torchrun ... health_worker.py JOBS.json, with a list of {"overrides": [...], "fault": name}, a fault being
"loss", "gradient", "hang" or none.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calm_megatron.config.errors import run_command_line
from calm_megatron.config.files import load_run
from calm_megatron.config.schema import ArConfig, RunConfig
from calm_megatron.data.batch import Batch
from calm_megatron.data.data_splits import DataSplits
from calm_megatron.model.ar_baseline import ArTerms
from calm_megatron.parallel import grid as parallel
from calm_megatron.parallel.grid import Grid
from calm_megatron.train import loop
from calm_megatron.train.ar_task import ArTask
from calm_megatron.train.tasks import build_task

FAULTY_STEP = 3


class FaultyTask(ArTask):
    """The baseline, whose loss or gradient is no number in one step, at the last data rank alone."""

    fault: str

    def forward(self, module: Any, batch: Batch, step: int) -> ArTerms | Tensor:
        """As ever, but for that step."""
        result = super().forward(module, batch, step)
        here = step == FAULTY_STEP and self.grid.data_rank == self.grid.data_parallel_size - 1
        if not here or isinstance(result, Tensor):
            return result
        if self.fault == "hang":
            time.sleep(3600)
        if self.fault == "loss":
            return ArTerms(result.loss * torch.nan)
        loss = result.loss * 1.0
        loss.register_hook(lambda gradient: gradient * torch.nan)
        return ArTerms(loss)


def build_faulty(config: RunConfig, data: DataSplits, grid: Grid) -> FaultyTask:
    """The task of the config's model, which is a baseline."""
    assert isinstance(config.model, ArConfig)
    return FaultyTask(config, config.model, data, grid)


def main() -> None:
    """Run the jobs in their order."""
    for job in json.loads(Path(sys.argv[1]).read_text()):
        FaultyTask.fault = job["fault"]
        loop.run(build_faulty if job["fault"] else build_task, load_run([], job["overrides"]))
    parallel.stop()


if __name__ == "__main__":
    run_command_line(main)
