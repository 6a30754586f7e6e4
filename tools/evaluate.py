"""Score a trained autoencoder or CALM on held-out text.

An autoencoder is asked for its tokens back, from the posterior mean, from a sample and under noise. A CALM gets its energy
loss and BrierLM with its interval. Runs on one rank, or on several under torchrun.

Example: python tools/evaluate.py --model runs/demo/calm --split test --baselines
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from calm_megatron.checkpoint.load import find_checkpoint, load_autoencoder, load_calm, saved_config
from calm_megatron.config.errors import UserError, run_command_line
from calm_megatron.config.schema import AutoencoderConfig, CalmConfig, DataConfig, RunConfig
from calm_megatron.data.loader import DataSplits
from calm_megatron.evaluate.baselines import training_counts, validate_unigram
from calm_megatron.evaluate.brier import ORDERS
from calm_megatron.parallel.grid import Grid, one_rank
from calm_megatron.telemetry.files import write_atomically
from calm_megatron.train.autoencoder_task import AutoencoderTask
from calm_megatron.train.calm_task import CalmTask
from calm_megatron.train.task import evaluation_plan


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, metavar="RUN", help="run folder, or one of its checkpoints")
    add("--autoencoder", metavar="RUN", help="of a CALM: where its autoencoder is, if it was moved")
    add("--data", metavar="PREFIX", help="score on this whole data set instead of a split of the run's")
    add("--split", choices=("train", "valid", "test"), default="valid", help="of the run's data (default: valid)")
    add("--eval-iters", type=int, default=0, metavar="N", help="first N micro-batches only (default: 0, the whole set)")
    add("--micro-batch-size", type=int, metavar="B", help="sequences at once (default: that of the run)")
    add("--seed", type=int, help="of all draws (default: that of the run)")
    add("--baselines", action="store_true", help="of a CALM: score an untrained model and a unigram sampler, too")
    add("--output", type=Path, metavar="FILE", help="default: evaluation.json in the run folder; baselines go beside it")
    return parser.parse_args()


def evaluated_config(arguments: argparse.Namespace) -> RunConfig:
    """The run's config with what the command line changes."""
    config = saved_config(arguments.model)
    if arguments.eval_iters < 0 or (arguments.micro_batch_size or 1) < 1 or (arguments.seed or 0) < 0:
        raise UserError("a number is too small", "--eval-iters, --micro-batch-size or --seed", "give 0, 1, 0 or more")
    if arguments.seed is not None:
        config = replace(config, run=replace(config.run, seed=arguments.seed))
    if arguments.micro_batch_size is not None:
        config = replace(config, train=replace(config.train, micro_batch_size=arguments.micro_batch_size))
    if arguments.data is not None:
        config = replace(config, data=only_tested_on(arguments.data, config.data))
    if isinstance(config.model, CalmConfig):
        if arguments.autoencoder is not None:
            config = replace(config, model=replace(config.model, autoencoder=arguments.autoencoder))
    elif arguments.baselines or arguments.autoencoder is not None:
        raise UserError("the model is an autoencoder", "--baselines or --autoencoder", "give them with a CALM only")
    return config


def only_tested_on(prefix: str, data: DataConfig) -> DataConfig:
    """The run's training data beside another data set for testing; opening both checks that they fit together."""
    training = data.data_path or data.train_data_path
    return replace(data, data_path=None, train_data_path=training, valid_data_path=None, test_data_path=prefix)


def score(config: RunConfig, grid: Grid, path: str, split: str, iters: int, baselines: bool) -> list[dict[str, Any]]:
    """The scores, and those of the baselines if asked for."""
    model = config.model
    data = DataSplits.open(
        config.data, patch_size=model.patch_size, seed=config.run.seed, vocab_size=model.vocab_size
    )
    if isinstance(model, AutoencoderConfig):
        return [AutoencoderTask(config, model, data, grid).validate(load_autoencoder(path).to(grid.device), split, iters)]
    task = CalmTask(config, model, data, grid)
    trained = load_calm(path, model.autoencoder).to(grid.device)
    trained.autoencoder.to(grid.device, torch.float32)
    scores = [task.validate(trained, split, iters)]
    if baselines and model.patch_size >= ORDERS:
        plan = evaluation_plan(config, data, split, iters, grid, task.streams)
        counts_V = training_counts(data.train, model.vocab_size)
        unigram = validate_unigram(counts_V, plan, model.patch_size, config.evaluation.confidence)
        untrained = task.validate(task.build().eval(), split, iters)
        scores.append({"untrained": untrained, "unigram": unigram.as_dict()})
    return scores


def show(name: str, scores: Mapping[str, Any]) -> None:
    """Print the scores of a model, one a line."""
    print(name)
    for key, value in scores.items():
        if key == "robustness":
            value = ", ".join(f"{point['token_accuracy']:.4f} at sigma {point['sigma']:g}" for point in value)
        elif isinstance(value, list):
            value = ", ".join(f"{item:.5f}" for item in value)
        print(f"  {key:<26} {f'{value:.5f}' if isinstance(value, float) else value}")


def main() -> None:
    """Evaluate, print and write."""
    arguments = parse_arguments()
    checkpoint = find_checkpoint(arguments.model)
    config = evaluated_config(arguments)
    split = "test" if arguments.data else arguments.split
    with one_rank() as grid:
        scores, *others = score(config, grid, arguments.model, split, arguments.eval_iters, arguments.baselines)
        if not grid.is_main:
            return
    step = json.loads((checkpoint / "progress.json").read_text())["step"]
    result = {"step": step, **scores, "split": arguments.data or split}
    output = arguments.output or checkpoint.parent.parent / "evaluation.json"
    write_atomically(output, json.dumps(result, indent=2).encode() + b"\n")
    show(f"{config.model.type}, step {step}, {result['split']}", scores)
    for baselines in others:
        write_atomically(output.with_name("baselines.json"), json.dumps(baselines, indent=2).encode() + b"\n")
        for name, found in baselines.items():
            show(name, found)
    print(f"wrote {output}")


if __name__ == "__main__":
    run_command_line(main)
