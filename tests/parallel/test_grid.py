"""A world of one rank, and what a rank is told whose others do not come."""

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from calm_megatron.config.errors import RANK_LOST, UserError
from calm_megatron.parallel.grid import Grid, data_parallel_size, one_rank
from tests.small_runs import ROOT


def test_one_rank_is_the_main_one(grid: Grid) -> None:
    assert (grid.rank, grid.world_size, grid.data_rank, grid.data_parallel_size) == (0, 1, 0, 1)
    assert grid.is_main
    values = torch.tensor([2.0], device=grid.device)
    dist.all_reduce(values, group=grid.data_group)
    assert values.item() == 2.0


def test_a_grid_that_is_there_is_left_as_it_is(grid: Grid) -> None:
    with one_rank() as inner:
        assert inner == grid
    assert dist.is_initialized()


def test_world_size_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert data_parallel_size(1, 1) == 1


def test_the_data_ranks_are_what_tensor_and_pipeline_ranks_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert [data_parallel_size(*sizes) for sizes in ((1, 1), (2, 2), (4, 2))] == [8, 2, 1]
    with pytest.raises(UserError, match=r"2 \* 3 does not divide the 8 ranks") as raised:
        data_parallel_size(2, 3)
    assert raised.value.what_to_do == "start a multiple of 6 ranks, or bring the product to 1 or 2 or 4 or 8"


@pytest.mark.slow
def test_ranks_that_do_not_come_are_one_message() -> None:
    program = "\n".join(
        [
            "from calm_megatron.config.errors import run_command_line",
            "from calm_megatron.parallel.grid import start",
            "run_command_line(lambda: start(timeout_minutes=0.02) and None)",
        ]
    )
    lonely = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **lonely, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == RANK_LOST
    assert "rank 1 of 2 could not join the others" in done.stderr
    assert "where: rendezvous 127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr
