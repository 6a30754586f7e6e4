"""Loss scaling: a step whose gradients overflow changes no weight, and the scale comes down by itself."""

from pathlib import Path

import pytest
import torch

from calm_megatron.config.errors import UserError
from calm_megatron.config.files import load_run
from calm_megatron.data.data_splits import DataSplits
from calm_megatron.data.prefetch import TrainingBatches
from calm_megatron.data.sampler import BatchSchedule
from calm_megatron.parallel import cpu_backend
from calm_megatron.parallel.grid import Grid
from calm_megatron.train.ar_task import ArTask
from calm_megatron.train.engine import Engine
from tests.small_runs import AR, settings


@pytest.fixture
def fp16() -> None:
    """Skips the test where there is no arithmetic in fp16."""
    try:
        cpu_backend.refuse_fp16()
    except UserError as error:
        pytest.skip(error.what)


def test_an_overflow_leaves_out_the_step(tmp_path: Path, small_corpus: Path, grid: Grid, fp16: None) -> None:
    overrides = settings(
        AR, run__directory=tmp_path, data__data_path=small_corpus, train__precision="fp16", parallel__zero_stage=1
    )
    config = load_run([], overrides)
    data = DataSplits.open(config.data, patch_size=1, seed=config.run.seed, vocab_size=config.model.vocab_size)
    engine = Engine(ArTask(config, config.model, data, grid), config, grid)  # type: ignore[arg-type]
    steps = TrainingBatches(data.train, BatchSchedule(8, None, 2, 1), 0, 0)
    first = engine.train_step(next(steps), 0)
    assert first["loss_scale"] == 2**16 and "skipped" not in first and first["grad_norm"] > 0

    engine.engine.optimizer.loss_scaler.cur_scale = 2.0**40
    before = {name: weight.clone() for name, weight in engine.model.named_parameters()}
    overflown = engine.train_step(next(steps), 1)
    assert overflown["loss_scale"] == 2**39 and overflown["skipped"] == 1
    assert "grad_norm" not in overflown
    assert all(torch.equal(weight, before[name]) for name, weight in engine.model.named_parameters())

    engine.engine.optimizer.loss_scaler.cur_scale = 2.0**10
    good = engine.train_step(next(steps), 2)
    assert "skipped" not in good and good["grad_norm"] > 0
    assert not all(torch.equal(weight, before[name]) for name, weight in engine.model.named_parameters())


def test_a_cpu_without_fp16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_backend, "ON_CPU", True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)
    with pytest.raises(UserError, match="cannot calculate in fp16"):
        cpu_backend.refuse_fp16()
