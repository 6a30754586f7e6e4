"""Ranks of the replicas test: equal copies pass, one flipped bit on one rank is named on all."""

import torch
import torch.distributed as dist

from calm_megatron.config.errors import UserError
from calm_megatron.parallel import grid as parallel
from calm_megatron.parallel.replicas import check_replicas


def main() -> None:
    """Check equal copies, then one that differs in its last bit, then two elements that changed places."""
    grid = parallel.start(5)
    weights = {"first": torch.arange(10.0), "second": torch.arange(12.0, dtype=torch.bfloat16).view(3, 4)}
    check_replicas(weights, grid.data_group, "data ranks")
    flipped = weights["first"].clone()
    exchanged = weights["second"].clone()
    if grid.rank == 1:
        flipped.view(torch.int32)[3] ^= 1
        exchanged[0] = exchanged[0].flip(0)
    for changed in ({**weights, "first": flipped}, {**weights, "second": exchanged}):
        try:
            check_replicas(changed, grid.data_group, "data ranks")
        except UserError as error:
            print(f"rank {grid.rank}: {error.what}", flush=True)
        dist.barrier()
    parallel.stop()


if __name__ == "__main__":
    main()
