"""Ranks of which one is not well: what the check before the start says of each planted fault, as JSON in a file."""

import json
import sys
import time
from functools import partial
from pathlib import Path

from torch import Tensor

from calm_megatron.config.errors import UserError
from calm_megatron.parallel import checkup
from calm_megatron.parallel import grid as parallel
from calm_megatron.train.stragglers import OwnTime, report


def again_and_again(matrix: Tensor) -> Tensor:
    """Ten times the work."""
    for _ in range(9):
        checkup.multiply(matrix)
    return checkup.multiply(matrix)


def off_by_one(values: Tensor) -> Tensor:
    """A sum with one wrong number in it."""
    total = checkup.sum_over_ranks(values)
    total[7] += 1
    return total


def main(folder: Path) -> None:
    """Look at the ranks once without a fault, and once with each."""
    grid = parallel.start()
    look = partial(checkup.examine, grid, folder)
    sick = grid.rank == 1
    other = {**checkup.installed(), "torch": "2.12.1"} if sick else None
    looks = {
        "well": look(),
        "version": look(versions=other),
        "slow": look(work=again_and_again) if sick else look(),
        "wrong sum": look(add_up=off_by_one) if sick else look(),
        "wrong product": look(work=lambda matrix: checkup.multiply(matrix) + 1) if sick else look(),
    }
    said = {}
    for name, everyone in looks.items():
        try:
            checkup.refuse(everyone)
            refused = ""
        except UserError as error:
            refused = error.what
        said[name] = {"refused": refused, "remarks": checkup.remarks(everyone), "table": checkup.as_table(everyone)}
    own = OwnTime(grid.device)
    with own.measured():
        time.sleep(3.0 if sick else 0.5)
    values, late = report(own.take(), 2, grid)
    said["late"] = {"values": values, "late": late}
    (folder / f"{grid.rank}.json").write_text(json.dumps(said))
    parallel.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
