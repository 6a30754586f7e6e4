"""Ranks of the golden layout tests: loss and gradients of the official weights, the latter saved as a checkpoint.

Usage: torchrun ... golden_worker.py JOBS.json, with a list of {"checkpoint": folder, "output": folder,
"tensor": ranks, "pipe": stages, "sequence_parallel": bool}.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from calm_megatron.checkpoint.official_state import official_autoencoder, open_official
from calm_megatron.checkpoint.progress import Progress
from calm_megatron.checkpoint.store import CheckpointStore
from calm_megatron.config.schema import (
    CalmConfig,
    DataConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    RunSection,
    TrainConfig,
)
from calm_megatron.data.batch import Batch
from calm_megatron.model.autoencoder import FrozenAutoencoder
from calm_megatron.model.calm import Calm, CalmTerms
from calm_megatron.model.heads.kinds import term_names
from calm_megatron.parallel import grid as parallel
from calm_megatron.parallel.grid import Grid
from calm_megatron.parallel.tensor_ranks import TensorRanks
from calm_megatron.train.engine import Engine
from calm_megatron.train.pipeline_engine import PipelineEngine
from calm_megatron.train.task import own_layers
from tests.official import loss_noise


class GoldenTask:
    """The official weights, one micro-batch of the recorded tokens, and the recorded noise."""

    def __init__(self, checkpoint: Path, parallel_config: ParallelConfig, grid: Grid) -> None:
        self.official = open_official(checkpoint)
        self.recorded = load_file(checkpoint / "io.safetensors")
        self.frozen, self.grid = FrozenAutoencoder(official_autoencoder(self.official)), grid
        ids_BT = self.recorded["input_ids"]
        model = self.official.config
        assert isinstance(model, CalmConfig)
        self.term_names = term_names(model.head)
        self.config = RunConfig(
            run=RunSection(directory="none is written"),
            model=model,
            data=DataConfig(data_path="none is read", seq_length=ids_BT.shape[1]),
            train=TrainConfig(train_iters=1, micro_batch_size=len(ids_BT), global_batch_size=len(ids_BT)),
            optimizer=OptimizerConfig(clip_grad=0.0),
            parallel=parallel_config,
        )

    def build(self) -> nn.Module:
        """This rank's part of the official model."""
        model = Calm(
            self.config.model,  # type: ignore[arg-type]
            self.frozen,
            ranks=TensorRanks.of_this_process(self.config.parallel.sequence_parallel),
            held=own_layers(self.config, self.grid, self.frozen.config),
        )
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(model.sharding.part(name, self.official.state.whole("weight", name)))
        return model

    def forward(self, module: Callable[..., Any], batch: Batch, step: int) -> CalmTerms | Tensor:
        """Terms of the recorded batch."""
        result: CalmTerms | Tensor = module(batch.ids_BT, loss_noise(self.recorded))
        return result


class GradientEngine:
    """What `Engine` gathers of weights, of their gradients: as they are when the optimizer is about to step."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.gradients: dict[str, Tensor] = {}
        engine.engine.optimizer.register_step_pre_hook(self.keep)

    def keep(self, *_: object) -> None:
        """Copy them."""
        for name, weight in self.engine.model.named_parameters():
            assert weight.grad is not None, name
            self.gradients[name] = weight.grad.clone()

    def save(self, folder: Path) -> None:
        """Save them in the place of the weights, as a checkpoint."""
        with torch.no_grad():
            for name, weight in self.engine.model.named_parameters():
                weight.copy_(self.gradients[name])
        self.engine.check_replicas()
        config = self.engine.config
        store = CheckpointStore(replace(config, run=replace(config.run, directory=str(folder))), self.engine.grid)
        store.begin(self.engine.state, Progress())
        store.finish()


def run(job: dict[str, Any]) -> None:
    """One step of one layout."""
    grid = parallel.start(5, job["tensor"], job["pipe"])
    layout = ParallelConfig(
        tensor_model_parallel_size=job["tensor"],
        pipeline_model_parallel_size=job["pipe"],
        sequence_parallel=job["sequence_parallel"],
    )
    task = GoldenTask(Path(job["checkpoint"]), layout, grid)
    engine = (PipelineEngine if job["pipe"] > 1 else Engine)(task, task.config, grid)  # type: ignore[arg-type]
    gradients = GradientEngine(engine)
    ids_BT = task.recorded["input_ids"]
    batches: Sequence[Batch] = [Batch(ids_BT, torch.zeros(len(ids_BT), 1), torch.arange(len(ids_BT)))]
    values = engine.train_step(batches, 0)
    gradients.save(Path(job["output"]))
    if grid.is_main:
        (Path(job["output"]) / "loss.json").write_text(json.dumps(values["loss"]))


def main() -> None:
    """Run the jobs in their order."""
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run(job)
    parallel.stop()


if __name__ == "__main__":
    main()
