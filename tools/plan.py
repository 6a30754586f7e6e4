"""Show what a run would need and take, before anything is started: memory, traffic, time, layouts, pipeline stages.

Example: python tools/plan.py examples/models/calm_xl.yaml examples/machines/gpu_node.yaml --gpus 64 --gpu h100
Example: python tools/plan.py examples/models/calm_xl.yaml examples/machines/gpu_node.yaml --stages 4 8
"""

import argparse
from pathlib import Path

from calm_megatron.config.errors import UserError, run_command_line
from calm_megatron.plan.report import plan_text, read_autoencoder, read_for_plan
from calm_megatron.plan.run_plan import known_device, run_plan_text

_EXAMPLE = "write, for example, --stages 4 8, or --gpus 64"


def main() -> None:
    """Read the command line and print the plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("words", nargs="+", metavar="CONFIG.yaml | section.key=value", help="files and settings of the run")
    add("--gpus", type=int, metavar="N", help="plan the run on so many GPUs")
    add("--gpu", metavar="NAME", help="of --gpus: v100, a100, h100, h200 or b200 (default h100)")
    add("--stages", nargs="+", default=[], metavar="N", help="cut into so many pipeline stages; settings may follow")
    add("--autoencoder", type=Path, metavar="FILE", help="its model file, to count what its encoder does for a CALM")
    given = parser.parse_intermixed_args()
    # argparse gives all words behind an option of several words to that option.
    words = [*given.words, *(word for word in given.stages if "=" in word)]
    stages = [_number(word) for word in given.stages if "=" not in word]
    if not stages and given.gpus is None:
        raise UserError("no number of stages is given, and no number of GPUs", "--stages", _EXAMPLE)
    if given.gpus is None and given.gpu is not None:
        raise UserError("a GPU is named, but not how many there are", "--gpu", "give --gpus too, or leave it out")
    if given.gpus is not None and given.gpus < 1:
        raise UserError(f"gpus is {given.gpus}", "--gpus", "give 1 or more")
    config = read_for_plan([word for word in words if "=" not in word], [word for word in words if "=" in word])
    autoencoder = None if given.autoencoder is None else read_autoencoder(given.autoencoder)
    if given.gpus is not None:
        print(run_plan_text(config, given.gpus, known_device(given.gpu or "h100"), autoencoder))
    if stages:
        print(plan_text(config, stages, autoencoder))


def _number(word: str) -> int:
    if not word.isdecimal():
        raise UserError(f"'{word}' is no number of stages", "--stages", _EXAMPLE)
    return int(word)


if __name__ == "__main__":
    run_command_line(main)
