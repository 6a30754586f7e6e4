"""What a run measures of itself: traces, the ranks' own times, memory now, FLOP/s and MFU."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from calm_megatron.config.files import load_run, to_yaml
from calm_megatron.plan.pace import model_flops
from calm_megatron.telemetry.model_speed import ModelSpeed
from calm_megatron.telemetry.run_log import read_log
from tests.small_runs import AR, AUTOENCODER, ROOT, settings

Program = Callable[..., subprocess.CompletedProcess[str]]


def test_a_run_measures_itself(tmp_path: Path, small_corpus: Path, program: Program) -> None:
    run = tmp_path / "run"
    changes = {"logging__profile_first_step": 4, "logging__profile_steps": 2, "logging__straggler_interval": 5}
    config = load_run([], settings(AR, run__directory=run, data__data_path=small_corpus, **changes))
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    done = program(ROOT / "pretrain_calm.py", tmp_path / "run.yaml", ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    log = read_log(run / "log.jsonl")
    assert log.series("ranks/forward_seconds_slowest")[0] == [5, 10]
    for slowest, middle in zip(
        log.series("ranks/forward_seconds_slowest")[1], log.series("ranks/forward_seconds")[1], strict=True
    ):
        assert 0 < middle <= slowest
    assert len(log.series("memory/host_gib")[0]) == 10
    speeds, tokens = log.series("speed/model_tflops_per_rank")[1], log.series("speed/tokens_per_second")[1]
    a_token = model_flops(config) / config.data.seq_length
    assert speeds == pytest.approx([a_token * each / 2 / 1e12 for each in tokens])
    assert "speed/mfu" not in log.names(), "nobody knows this CPU's peak"
    (table,) = [event.facts["table"] for event in log.events if event.kind == "ranks" and "table" in event.facts]
    assert [line.split()[0] for line in table.splitlines()] == ["rank", "0", "1"]
    traces = sorted((run / "profile").glob("*.json"))
    assert [trace.name.split(".")[0] for trace in traces] == ["rank_00000", "rank_00001"]
    names = {event.get("name") for event in json.loads(traces[0].read_text())["traceEvents"]}
    assert {"ProfilerStep#3", "ProfilerStep#4"} <= names and "ProfilerStep#5" not in names


def test_mfu_is_the_share_of_a_known_peak() -> None:
    speed = ModelSpeed(flops_per_token=2e9, ranks=4, peak_flops=1e12)
    assert speed.named(1000.0) == {"speed/model_tflops_per_rank": 0.5, "speed/mfu": 0.5}
    assert ModelSpeed(2e9, 4).named(1000.0) == {"speed/model_tflops_per_rank": 0.5}
    assert speed.named(None) == {}
    autoencoder = load_run([], settings(AUTOENCODER, run__directory="x", data__data_path="x"))
    assert ModelSpeed.of(autoencoder, 1).named(1000.0) == {}
