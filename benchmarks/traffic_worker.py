"""Ranks of the traffic benchmarks: counts what each sends in one optimizer step, by kind.

Usage: torchrun ... -m benchmarks.traffic_worker JOBS FOLDER, with jobs {"name": [settings, ...]}.
"""

from collections.abc import Callable

from benchmarks.small_run import measure_second_steps
from benchmarks.wire import Counter, SentRow, watching
from calm_megatron.train.engine import Engine


def sent(trained: Engine, step: Callable[[], object]) -> list[SentRow]:
    """What this rank sends in the step."""
    counter = Counter()
    with watching(counter.add):
        step()
    return counter.rows()


if __name__ == "__main__":
    measure_second_steps(sent)
