"""Ranks of the traffic benchmarks: counts what each sends in one optimizer step.

Usage: torchrun ... -m benchmarks.traffic_worker JOBS FOLDER, with jobs {"name": [settings, ...]}.
"""

import json
import sys

from benchmarks.small_run import RandomTokens, engine, jobs_of_rank, micro_batches, small, start
from benchmarks.wire import Counter, watching
from calm_megatron.parallel import grid as parallel


def main() -> None:
    """Run the jobs in their order, and write what this rank sent in the second step of each, by kind."""
    jobs, findings = jobs_of_rank(sys.argv)
    found = {}
    for name, settings in jobs.items():
        config = small(*settings)
        grid = start(config)
        trained = engine(RandomTokens(config, grid))
        # The first step also says what shapes will travel, and traces the order of modules for ZeRO-3.
        trained.train_step(micro_batches(config, grid, 0), 0)
        counter = Counter()
        with watching(counter.add):
            trained.train_step(micro_batches(config, grid, 1), 1)
        found[name] = [[kind.among, kind.purpose, kind.collective, size] for kind, size in sorted(counter.sent.items())]
    findings.write_text(json.dumps(found))
    parallel.stop()


if __name__ == "__main__":
    main()
