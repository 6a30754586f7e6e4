"""Real runs of a few steps on ranks of their own: a small CALM on random tokens, trained by the project's engine."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from calm_megatron.config.schema import AutoencoderConfig, CalmConfig, RunConfig
from calm_megatron.data.batch import Batch
from calm_megatron.model.autoencoder import Autoencoder, FrozenAutoencoder
from calm_megatron.model.heads.kinds import term_names
from calm_megatron.model.initialise import initialise
from calm_megatron.parallel import grid as parallel
from calm_megatron.parallel.grid import Grid
from calm_megatron.parallel.random_streams import RandomStreams
from calm_megatron.plan.report import read_for_plan
from calm_megatron.train.calm_task import CalmTask
from calm_megatron.train.engine import Engine
from calm_megatron.train.pipeline_engine import PipelineEngine
from calm_megatron.train.task import dtype_of

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "model.type=calm", "model.autoencoder=unused", "model.vocab_size=1001", "model.patch_size=4",
    "model.latent_size=16", "model.num_layers=3", "model.hidden_size=64", "model.ffn_hidden_size=176",
    "model.num_attention_heads=4", "model.num_query_groups=2", "model.head.num_layers=2",
    "model.head.num_samples=4",
    "data.seq_length=64", "train.train_iters=100", "train.global_batch_size=16", "train.micro_batch_size=2",
)  # fmt: skip
"""A model of 0.3 million parameters, in several micro-batches a step."""
ENERGY = ("model.head.noise_size=16", "model.head.num_target_samples=8")


def small(*settings: str) -> RunConfig:
    """The small run with settings in the place of its own, and the energy head unless they name one."""
    own_head = any(setting.startswith("model.head.type=") for setting in settings)
    merged = dict(text.split("=", 1) for text in (*SMALL, *(() if own_head else ENERGY), *settings))
    return read_for_plan([], [f"{name}={value}" for name, value in merged.items()])


def autoencoder(config: RunConfig) -> AutoencoderConfig:
    """An autoencoder that fits the run's model."""
    model = config.model
    return AutoencoderConfig(
        vocab_size=model.vocab_size,
        patch_size=model.patch_size,
        latent_size=_calm(config).latent_size,
        hidden_size=32,
        ffn_hidden_size=64,
    )


class RandomTokens(CalmTask):
    """CALM with random targets: it needs neither data nor a trained autoencoder, and cannot be validated."""

    def __init__(self, config: RunConfig, grid: Grid) -> None:
        self.config, self.model, self.grid = config, _calm(config), grid
        self.term_names = term_names(self.model.head)
        self.streams = RandomStreams(config.run.seed, grid.device)
        random = Autoencoder(autoencoder(config))
        initialise(random, seed=1, std=0.1)
        self.autoencoder = FrozenAutoencoder(random).to(grid.device, dtype_of(config))


def start(config: RunConfig) -> Grid:
    """The ranks of a run, among those that were launched."""
    layout = config.parallel
    return parallel.start(
        tensor_size=layout.tensor_model_parallel_size, pipeline_size=layout.pipeline_model_parallel_size
    )


def engine(task: CalmTask) -> Engine:
    """The engine that the training loop would take."""
    return (PipelineEngine if task.grid.stages.size > 1 else Engine)(task, task.config, task.grid)


def micro_batches(config: RunConfig, grid: Grid, step: int) -> list[Batch]:
    """This rank's part of a step's random tokens."""
    train, data = config.train, config.data
    dice = torch.Generator().manual_seed(step)
    whole = torch.randint(config.model.vocab_size, (train.global_batch_size, data.seq_length), generator=dice)
    numbers = torch.arange(train.global_batch_size) + step * train.global_batch_size
    documents = torch.zeros(train.micro_batch_size, data.seq_length // config.model.patch_size, dtype=torch.int32)
    own = zip(whole.split(train.micro_batch_size), numbers.split(train.micro_batch_size), strict=True)
    return [Batch(ids, documents, number) for ids, number in list(own)[grid.data_rank :: grid.data_parallel_size]]


def launch(worker: str, ranks: int, jobs: dict[str, Any], timeout: float = 300.0) -> list[dict[str, Any]]:
    """Run a module of this folder on ranks of their own, and read what each found.

    Args:
        worker: the module; it is given the file of the jobs, and a folder where each rank writes `RANK.json`.
        ranks: how many.
        jobs: what the worker is told.
        timeout: in seconds.

    Raises:
        RuntimeError: a rank failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "jobs"
        file.write_text(json.dumps(jobs))
        words = [*launcher, "-m", f"benchmarks.{worker}", str(file), folder]
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, env=environment, check=False)
        if done.returncode:
            raise RuntimeError(f"{worker} on {ranks} ranks failed:\n{done.stderr[-5000:]}")
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(ranks)]


def jobs_of_rank(arguments: Sequence[str]) -> tuple[dict[str, Any], Path]:
    """In a worker: the jobs, and the file for this rank's findings."""
    jobs: dict[str, Any] = json.loads(Path(arguments[1]).read_text())
    return jobs, Path(arguments[2]) / f"{os.environ['RANK']}.json"


def measure_second_steps(measure: Callable[[Engine, Callable[[], object]], object]) -> None:
    """In a worker with jobs {"name": [settings, ...]}: write what is measured in the second step of each job.

    The first step also says what shapes will travel, and traces the order of modules for ZeRO-3.

    Args:
        measure: is given the engine and its second step, which it is to call, and returns what goes into the file.
    """
    jobs, findings = jobs_of_rank(sys.argv)
    found = {}
    for name, settings in jobs.items():
        config = small(*settings)
        grid = start(config)
        trained = engine(RandomTokens(config, grid))
        trained.train_step(micro_batches(config, grid, 0), 0)
        second = partial(trained.train_step, micro_batches(config, grid, 1), 1)
        found[name] = measure(trained, second)
        trained.engine.destroy()
    findings.write_text(json.dumps(found))
    parallel.stop()


def _calm(config: RunConfig) -> CalmConfig:
    assert isinstance(config.model, CalmConfig)
    return config.model
