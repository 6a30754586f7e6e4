"""Score a run after its training: what `tools/evaluate.py` calls."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from calm_megatron.checkpoint.load import find_checkpoint, load_ar_baseline, load_autoencoder, load_calm, saved_config
from calm_megatron.config.atomic import demand_writable, write_output
from calm_megatron.config.checks import check
from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import ArConfig, AutoencoderConfig, CalmConfig, DataConfig, RunConfig
from calm_megatron.data.data_splits import DataSplits
from calm_megatron.evaluate.baselines import training_counts, validate_unigram
from calm_megatron.evaluate.brier import ORDERS
from calm_megatron.parallel.grid import Grid, one_rank
from calm_megatron.release.importing import UNKNOWN_DATA
from calm_megatron.train.ar_task import ArTask
from calm_megatron.train.autoencoder_task import AutoencoderTask
from calm_megatron.train.calm_task import CalmTask
from calm_megatron.train.task import evaluation_plan

BASELINES_FILE = "baselines.json"


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """What to score, and on what."""

    model: Path
    """Run folder or checkpoint."""
    autoencoder: str | None = None
    """Of a CALM: where its autoencoder is now; none means where it was."""
    data: str | None = None
    """Prefix of another data set, scored as a whole instead of a split of the run's."""
    split: Literal["train", "valid", "test"] | None = None
    """Of the run's data; none means `valid`."""
    eval_iters: int = 0
    """Micro-batches of each rank; 0 takes the whole set."""
    micro_batch_size: int | None = None
    rollout_positions: int | None = None
    """Places a sequence for BrierLM where a step gives fewer than four tokens; none means the run's."""
    seed: int | None = None
    """Of all draws; none means the run's."""
    sampling_steps: int | None = None
    """Of a CALM with a diffusion or flow head: steps to a sample; none means the run's."""
    baselines: bool = False
    """Score an untrained CALM and a unigram sampler, too."""
    output: Path | None = None
    """Where the scores are written; none means `evaluation.json` in the run folder."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name, least in {
            "eval_iters": 0,
            "micro_batch_size": 1,
            "rollout_positions": 0,
            "seed": 0,
            "sampling_steps": 1,
        }.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} is {value}", f"--{name.replace('_', '-')}", f"give {least} or more")
        if self.data is not None and self.split is not None:
            raise UserError("another data set is scored as a whole", "--split", "leave it or --data out")
        if self.baselines and self.output is not None and self.output.name == BASELINES_FILE:
            raise UserError("the baselines are written to this file", f"--output {self.output}", "name another")


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Scores as plain values, as they are written."""

    scores: Mapping[str, Any]
    baselines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By name; written to `baselines.json` beside the scores."""
    output: Path


def evaluate_run(request: EvaluationRequest) -> EvaluationResult | None:
    """Score a checkpoint, with fp32 weights, and write the scores; all ranks call together.

    Returns:
        The result at the main rank, none at others.

    Raises:
        UserError: checkpoint or data are missing or do not fit, the request does not fit the model, or the scores
            cannot be written.
    """
    checkpoint = find_checkpoint(request.model)
    config = _config(request)
    split = "test" if request.data else request.split or "valid"
    output = request.output or checkpoint.parent.parent / "evaluation.json"
    for file in (output, output.with_name(BASELINES_FILE)) if request.baselines else (output,):
        demand_writable(file)
    with one_rank() as grid:
        scores, baselines = _score(config, grid, request, split)
        if not grid.is_main:
            return None
    step = json.loads((checkpoint / "progress.json").read_text())["step"]
    result = EvaluationResult(
        scores={"step": step, **scores, "split": request.data or split}, baselines=baselines, output=output
    )
    write_output(output, json.dumps(result.scores, indent=2).encode() + b"\n")
    if baselines:
        write_output(output.with_name(BASELINES_FILE), json.dumps(baselines, indent=2).encode() + b"\n")
    return result


def _config(request: EvaluationRequest) -> RunConfig:
    """The run's config with what the request changes."""
    config = saved_config(request.model)
    if request.seed is not None:
        config = replace(config, run=replace(config.run, seed=request.seed))
    if request.sampling_steps is not None:
        config = replace(config, evaluation=replace(config.evaluation, sampling_steps=request.sampling_steps))
    if request.rollout_positions is not None:
        places = request.rollout_positions
        # The layout of the training does not matter here.
        config = replace(
            config,
            evaluation=replace(config.evaluation, rollout_positions=places),
            parallel=replace(config.parallel, pipeline_model_parallel_size=1),
        )
    check(config)
    if request.micro_batch_size is not None:
        # No matter whether it divides the training's global batch.
        config = replace(config, train=replace(config.train, micro_batch_size=request.micro_batch_size))
    if request.data is not None:
        config = replace(config, data=_tested_on(request.data, config.data))
    if isinstance(config.model, CalmConfig):
        if request.baselines and config.model.patch_size < ORDERS:
            raise UserError(
                f"the baselines are of BrierLM, which needs patches of {ORDERS} tokens; these have "
                f"{config.model.patch_size}",
                "--baselines",
                "leave it out",
            )
        if request.autoencoder is not None:
            config = replace(config, model=replace(config.model, autoencoder=request.autoencoder))
    elif request.baselines or request.autoencoder is not None:
        what = f"the model is of type '{config.model.type}'"
        raise UserError(what, "--baselines or --autoencoder", "give them with a CALM only")
    return config


def _tested_on(prefix: str, data: DataConfig) -> DataConfig:
    """The run's training data beside another data set for testing; opening both checks that they fit together."""
    training = data.data_path or data.train_data_path
    if training == UNKNOWN_DATA:
        training = prefix
    return replace(data, data_path=None, train_data_path=training, valid_data_path=None, test_data_path=prefix)


def _score(
    config: RunConfig, grid: Grid, request: EvaluationRequest, split: str
) -> tuple[dict[str, object], dict[str, dict[str, object]]]:
    """The scores of the model, and of the baselines if asked for."""
    model, iters = config.model, request.eval_iters
    data = DataSplits.open(config.data, patch_size=model.patch_size, seed=config.run.seed, vocab_size=model.vocab_size)
    if isinstance(model, AutoencoderConfig):
        autoencoder = load_autoencoder(request.model).to(grid.device)
        return AutoencoderTask(config, model, data, grid).validate(autoencoder, split, iters), {}
    if isinstance(model, ArConfig):
        baseline = load_ar_baseline(request.model).to(grid.device)
        return ArTask(config, model, data, grid).validate(baseline, split, iters), {}
    task = CalmTask(config, model, data, grid)
    trained = load_calm(request.model, model.autoencoder).to(grid.device)
    trained.autoencoder.to(grid.device, torch.float32)
    scores = task.validate(trained, split, iters)
    if not request.baselines:
        return scores, {}
    plan = evaluation_plan(config, data, split, iters, grid, task.streams)
    counts_V = training_counts(data.train, model.vocab_size)
    unigram = validate_unigram(counts_V, plan, model.patch_size, config.evaluation.confidence)
    return scores, {"untrained": task.validate(task.build().eval(), split, iters), "unigram": unigram.as_dict()}
