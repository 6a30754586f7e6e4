"""A step of a pipeline in simulated time: 1F1B, stage by stage, with what travels between them.

Each stage does its work in the order of the schedule, and waits where what it needs is not there yet. Left out: the
spread of times from step to step, and that transfers slow each other down where they share a link.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StageTimes:
    """Seconds that a stage takes for a micro-batch, and after them."""

    forward: float
    backward: float
    send_forward: float = 0.0
    """To hand the hidden states to the next stage."""
    send_backward: float = 0.0
    """To hand their gradient to the stage before."""
    update: float = 0.0
    """Once a step: gradients among the data ranks, and the optimizer."""


@dataclass(frozen=True)
class Simulated:
    """A step."""

    seconds: float
    busy: tuple[float, ...]
    """Of each stage, the share of the step in which it works."""


def order(stage: int, stages: int, micro_batches: int) -> list[tuple[bool, int]]:
    """The work of a stage in 1F1B: (whether forward, number of the micro-batch)."""
    ahead = min(stages - stage - 1, micro_batches)
    work = [(True, number) for number in range(ahead)]
    for number in range(micro_batches):
        if number + ahead < micro_batches:
            work.append((True, number + ahead))
        work.append((False, number))
    return work


def simulate(stages: Sequence[StageTimes], micro_batches: int) -> Simulated:
    """Run a step; a sender is busy until what it sends has arrived."""
    count = len(stages)
    todo = [order(stage, count, micro_batches) for stage in range(count)]
    done = [0] * count
    clock = [0.0] * count
    worked = [0.0] * count
    arrived: dict[tuple[bool, int, int], float] = {}
    for number in range(micro_batches):
        arrived[True, 0, number] = 0.0
        arrived[False, count - 1, number] = 0.0
    while any(done[stage] < len(todo[stage]) for stage in range(count)):
        for stage, times in enumerate(stages):
            while done[stage] < len(todo[stage]):
                forward, number = todo[stage][done[stage]]
                if (forward, stage, number) not in arrived:
                    break
                work = times.forward if forward else times.backward
                neighbour = stage + 1 if forward else stage - 1
                if 0 <= neighbour < count:
                    work += times.send_forward if forward else times.send_backward
                clock[stage] = max(clock[stage], arrived[forward, stage, number]) + work
                worked[stage] += work
                if 0 <= neighbour < count:
                    arrived[forward, neighbour, number] = clock[stage]
                done[stage] += 1
    ends = [clock[stage] + times.update for stage, times in enumerate(stages)]
    seconds = max(ends)
    return Simulated(seconds, tuple((worked[s] + stages[s].update) / seconds for s in range(count)))
