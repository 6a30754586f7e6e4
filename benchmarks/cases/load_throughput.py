"""Finding, verifying and taking over a checkpoint, against one sequential read of as many bytes, both from the disk.

The part beside the row is torch.load of the same tensors and copying them, without a look at any checksum.
"""

import statistics
from dataclasses import replace

from benchmarks import saved
from benchmarks.harness import Part, Row, row
from calm_megatron.parallel.grid import one_rank

ROUNDS = 5


def run() -> Row:
    """Read in turns."""
    state = saved.State(saved.SHAPES)
    with saved.on_disk() as folder, one_rank() as grid:
        checkpoints = saved.store(folder / "run", grid)
        checkpoint = saved.save(checkpoints, state, 1).path
        others = folder / "others"
        others.mkdir()
        saved.write_plainly(others / "plain", state.as_bytes())
        saved.torch_save(others / "torch.pt", state)
        state.demand_taken_over(checkpoints.resume)
        state.demand_taken_over(lambda other: saved.torch_load(others / "torch.pt", other))
        rounds = []
        for _ in range(ROUNDS + 1):
            saved.forget(checkpoint)
            saved.forget(others)
            rounds.append(
                (
                    saved.seconds(lambda: checkpoints.resume(state)),
                    saved.seconds(lambda: saved.read_plainly(others / "plain")),
                    saved.seconds(lambda: saved.torch_load(others / "torch.pt", state)),
                )
            )
    ours, disk, pickled = (
        [each * saved.GB / state.bytes for each in column] for column in zip(*rounds[1:], strict=True)
    )
    torchs = Part("torch.load, copied", statistics.median(ours), statistics.median(pickled))
    return replace(row(ours, disk, "s/GB"), parts=(torchs,))
