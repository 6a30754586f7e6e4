"""The check before the start finds what is planted, and nothing else."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from calm_megatron.parallel.checkup import Found, refuse, remarks

WORKER = Path(__file__).with_name("checkup_worker.py")


def test_a_sick_rank_is_named(tmp_path: Path, program: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = program(WORKER, tmp_path, ranks=3)
    assert done.returncode == 0, done.stderr[-3000:]
    first, *others = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert all(other == first for other in others), "all ranks come to the same"
    assert first["well"]["refused"] == "" and len(first["well"]["table"].splitlines()) == 4
    assert "torch differs: " in first["version"]["refused"] and "2.12.1 on rank 1 (" in first["version"]["refused"]
    assert first["slow"]["refused"] == ""
    assert any(remark.startswith("rank 1 (") and "computes" in remark for remark in first["slow"]["remarks"])
    for name in ("wrong sum", "wrong product"):
        assert first[name]["refused"].startswith("products or sums come out wrong on rank 1 ("), name
        assert "rank 0" not in first[name]["refused"]
    (late,) = first["late"]["late"]
    assert late.startswith("rank 1 (") and "as long as the median of its stage" in late
    assert first["late"]["values"]["ranks/forward_seconds_slowest"] >= 1.5


WELL = Found(0, "a", {"torch": "2"}, 100.0, 8.0, None, 50.0, 0.01, 0.001, True, True)


def test_what_is_short_is_told() -> None:
    everyone = [WELL, replace(WELL, rank=1, node="b"), replace(WELL, rank=2, node="c")]
    refuse(everyone)
    assert remarks(everyone) == []
    for change, said in (
        ({"disk_gb": 0.2}, "rank 2 (c): 0.20 GB are free for the run folder"),
        ({"memory_gb": 0.1}, "rank 2 (c): 0.10 GB of memory are free"),
        ({"clock": 160.0}, "the clocks are 60 s apart: times in logs do not compare"),
        ({"link_seconds": 0.01}, "rank 2 (c) is reached 10.0 times as slowly as the median"),
    ):
        assert remarks([*everyone[:2], replace(everyone[2], **change)]) == [said]  # type: ignore[arg-type]
