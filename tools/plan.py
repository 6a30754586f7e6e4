"""Show how a model is cut into pipeline stages, and what each stage holds and computes, before anything is started.

Example: python tools/plan.py examples/models/calm_xl.yaml examples/machines/gpu_node.yaml --stages 4 8
"""

import argparse
from pathlib import Path

from calm_megatron.config.errors import UserError, run_command_line
from calm_megatron.plan.report import plan_text, read_autoencoder, read_for_plan

_EXAMPLE = "write, for example, --stages 4 8"


def main() -> None:
    """Read the command line and print the plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("words", nargs="+", metavar="CONFIG.yaml | section.key=value", help="files and settings of the run")
    add("--stages", nargs="+", required=True, metavar="N", help="numbers of pipeline stages; settings may follow")
    add("--autoencoder", type=Path, metavar="FILE", help="its model file, to count what its encoder does for a CALM")
    given = parser.parse_args()
    # argparse gives all words behind an option of several words to that option.
    words = [*given.words, *(word for word in given.stages if "=" in word)]
    stages = [_number(word) for word in given.stages if "=" not in word]
    if not stages:
        raise UserError("no number of stages is given", "--stages", _EXAMPLE)
    config = read_for_plan([word for word in words if "=" not in word], [word for word in words if "=" in word])
    autoencoder = None if given.autoencoder is None else read_autoencoder(given.autoencoder)
    print(plan_text(config, stages, autoencoder))


def _number(word: str) -> int:
    if not word.isdecimal():
        raise UserError(f"'{word}' is no number of stages", "--stages", _EXAMPLE)
    return int(word)


if __name__ == "__main__":
    run_command_line(main)
