"""A run goes on from a checkpoint that was cut anew offline, as it would have from the one that it was made of."""

from pathlib import Path

import pytest

from calm_megatron.checkpoint.inspect import compare_checkpoints, inspect_checkpoint
from calm_megatron.telemetry.run_log import read_log
from tests.small_runs import CALM, ROOT, TRAINED_AUTOENCODER, settings
from tests.train.launches import LAYOUTS_WORKER, Program, launch

TOOL = ROOT / "tools" / "reshard_checkpoint.py"
HALF = "step_00000005"


def test_a_run_of_one_rank_goes_on_at_two_tensor_ranks(tmp_path: Path, small_corpus: Path, program: Program) -> None:
    def job(name: str, base: list[str], **changes: object) -> list[str]:
        return settings(base, run__directory=tmp_path / name, data__data_path=small_corpus, **changes)

    def train(ranks: int, *jobs: list[str]) -> None:
        launch(program, LAYOUTS_WORKER, tmp_path / "jobs.json", jobs, ranks, words=["record"], timeout=300)

    autoencoder = {"model__autoencoder": tmp_path / "autoencoder"}
    train(
        1,
        job("autoencoder", TRAINED_AUTOENCODER),
        job("straight", CALM, checkpoint__save_interval=5, **autoencoder),
    )
    source, target = (tmp_path / name / "checkpoints" / HALF for name in ("straight", "moved"))
    done = program(TOOL, source, target, "--tensor-model-parallel-size", "2", "--files", "2")
    assert done.returncode == 0, done.stderr
    tensor = {"parallel__tensor_model_parallel_size": 2, "parallel__sequence_parallel": True}
    train(2, job("moved", CALM, **tensor, parallel__zero_stage=1, **autoencoder))
    # What the engine took over, saved again before the first step.
    taken_over = inspect_checkpoint(tmp_path / "moved" / "initial" / "checkpoints" / HALF)
    found = compare_checkpoints(inspect_checkpoint(source), taken_over)
    assert not found.weights and not found.shapes and not found.engine
    ours, theirs = (read_log(tmp_path / name / "log.jsonl") for name in ("moved", "straight"))
    for name in ("loss", "grad_norm"):
        assert ours.series(name)[1] == pytest.approx(theirs.series(name)[1][5:], rel=1e-4)
    assert [event.kind for event in ours.events].count("resume") == 1
