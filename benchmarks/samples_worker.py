"""Ranks of the sample benchmarks: sample parallelism and the cut head train the same model in turns.

Usage: torchrun ... -m benchmarks.samples_worker JOBS FOLDER, with jobs {"settings": [...], "rounds": number}.
"""

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from benchmarks.cut_head import CutTask
from benchmarks.small_run import RandomTokens, engine, jobs_of_rank, micro_batches, small, start
from benchmarks.wire import Counter, watching
from calm_megatron.data.batch import Batch
from calm_megatron.parallel import grid as parallel
from calm_megatron.train.engine import Engine


def main() -> None:
    """Count a step of each and time the others; write traffic by kind, seconds and losses of both."""
    jobs, findings = jobs_of_rank(sys.argv)
    config = small(*jobs["settings"])
    grid = start(config)
    engines = {"samples": engine(RandomTokens(config, grid)), "matrices": engine(CutTask(config, grid))}
    found: dict[str, dict[str, list[Any]]] = {name: {"seconds": [], "losses": [], "sent": []} for name in engines}
    for step in range(jobs["rounds"] + 1):
        batches = micro_batches(config, grid, step)
        for name, trained in engines.items():
            counter = Counter()
            if step == 0:
                with watching(counter.add):
                    loss, _ = timed_step(trained, batches, step)
                found[name]["sent"] = list(counter.rows())
            else:
                loss, seconds = timed_step(trained, batches, step)
                found[name]["seconds"].append(seconds)
            found[name]["losses"].append(loss)
    findings.write_text(json.dumps(found))
    parallel.stop()


def timed_step(trained: Engine, batches: Sequence[Batch], step: int) -> tuple[float, float]:
    """Loss and seconds of a step that all ranks begin together."""
    dist.barrier()
    begin = time.perf_counter()
    loss = trained.train_step(batches, step)["loss"]
    return loss, time.perf_counter() - begin


if __name__ == "__main__":
    main()
