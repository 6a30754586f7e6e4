"""A save that waits, with checksum and reading back, against one sequential write and sync of as many bytes.

The part beside the row is torch.save of the same tensors, with a sync.
"""

import statistics
from dataclasses import replace
from functools import partial

from benchmarks import saved
from benchmarks.harness import Part, Row, row
from calm_megatron.parallel.grid import one_rank

ROUNDS = 5


def run() -> Row:
    """Write in turns."""
    state = saved.State(saved.SHAPES)
    plain = state.as_bytes()
    with saved.on_disk() as folder, one_rank() as grid:
        waiting = saved.store(folder / "run", grid, "checkpoint.async_save=false")
        rounds = []
        for number in range(ROUNDS + 1):
            ours_now = saved.seconds(partial(saved.save, waiting, state, number))
            disk_now = saved.seconds(partial(saved.write_plainly, folder / "plain", plain))
            rounds.append((ours_now, disk_now, saved.seconds(partial(saved.torch_save, folder / "torch.pt", state))))
        state.demand_taken_over(waiting.resume)
        state.demand_taken_over(lambda other: saved.torch_load(folder / "torch.pt", other))
    ours, disk, pickled = (
        [each * saved.GB / state.bytes for each in column] for column in zip(*rounds[1:], strict=True)
    )
    torchs = Part("torch.save, synced", statistics.median(ours), statistics.median(pickled))
    return replace(row(ours, disk, "s/GB"), parts=(torchs,))
