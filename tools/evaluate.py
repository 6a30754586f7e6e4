"""Score a trained autoencoder or CALM on held-out text.

An autoencoder is asked for its tokens back, from the posterior mean, from a sample and under noise. A CALM gets its
energy loss and BrierLM with its interval. Runs on one rank, or on several under torchrun.

Example: python tools/evaluate.py --model runs/demo/calm --split test --baselines
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calm_megatron.config.errors import run_command_line


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="RUN", help="run folder, or one of its checkpoints")
    add("--autoencoder", metavar="RUN", help="of a CALM: where its autoencoder is, if it was moved")
    add("--data", metavar="PREFIX", help="score on this whole data set instead of a split of the run's")
    add("--split", choices=("train", "valid", "test"), help="of the run's data (default: valid)")
    add("--eval-iters", type=int, default=0, metavar="N", help="first N global batches only (default: 0, all)")
    add("--micro-batch-size", type=int, metavar="B", help="sequences at once (default: that of the run)")
    add(
        "--rollout-positions",
        type=int,
        metavar="W",
        help="of a baseline or a CALM with K < 4: places a sequence for BrierLM (default: that of the run)",
    )
    add("--seed", type=int, help="of all draws (default: that of the run)")
    add("--sampling-steps", type=int, metavar="S", help="of a diffusion or flow head (default: that of the run)")
    add("--baselines", action="store_true", help="of a CALM: score an untrained model and a unigram sampler, too")
    add("--output", type=Path, metavar="FILE", help="default: evaluation.json in the run folder; baselines beside it")
    return parser.parse_args()


def show(name: str, scores: Mapping[str, Any]) -> None:
    """Print the scores of a model, one a line."""
    print(name)
    for key, value in scores.items():
        if key == "robustness":
            text = ", ".join(f"{point['token_accuracy']:.4f} at sigma {point['sigma']:g}" for point in value)
        elif isinstance(value, list):
            text = ", ".join(f"{item:.5f}" for item in value)
        else:
            text = f"{value:.5f}" if isinstance(value, float) else str(value)
        print(f"  {key:<26} {text}")


def main() -> None:
    """Evaluate, write and print."""
    arguments = parse_arguments()
    # Heavy imports wait until the command line is known to be good.
    from calm_megatron.train.evaluation import EvaluationRequest, evaluate_run

    result = evaluate_run(EvaluationRequest(**vars(arguments)))
    if result is None:
        return
    show("this model", result.scores)
    for name, scores in result.baselines.items():
        show(name, scores)
    print(f"wrote {result.output}")


if __name__ == "__main__":
    run_command_line(main)
