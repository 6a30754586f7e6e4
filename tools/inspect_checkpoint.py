"""Show what is in a checkpoint and whether it is whole; with a second one, how their states and settings differ.

Weights and moments are compared bit by bit, one at a time, whatever the layouts. Exit code 0: whole, and equal; 1:
damaged, or different. Settings and layout are told of, but are no part of the state.

Example: python tools/inspect_checkpoint.py runs/demo/calm
"""

import argparse
import dataclasses
import json
from pathlib import Path

from calm_megatron.config.errors import run_command_line


def main() -> int:
    """Inspect, print, and tell by the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint, or run folder for its newest")
    add("other", type=Path, nargs="?", metavar="OTHER", help="to compare it with")
    add("--json", action="store_true", help="print JSON for programs")
    arguments = parser.parse_args()
    # Heavy imports wait until the command line is known to be good.
    from calm_megatron.checkpoint.describe import describe, describe_comparison
    from calm_megatron.checkpoint.inspect import compare_checkpoints, inspect_checkpoint
    from calm_megatron.checkpoint.meter import progress_bar

    paths = [arguments.checkpoint, *([arguments.other] if arguments.other else [])]
    with progress_bar() as meter:
        found = [inspect_checkpoint(path, meter) for path in paths]
        whole = all(each.whole for each in found)
        comparison = compare_checkpoints(found[0], found[1], meter) if whole and len(found) == 2 else None
    if arguments.json:
        facts: dict[str, object] = {
            "checkpoints": [
                {**dataclasses.asdict(each), "whole": each.whole, "parameters": each.parameters} for each in found
            ]
        }
        if comparison is not None:
            facts["comparison"] = {**dataclasses.asdict(comparison), "equal": comparison.equal}
        print(json.dumps(facts, indent=2))
    else:
        texts = [describe(each) for each in found]
        print("\n\n".join([*texts, describe_comparison(comparison)] if comparison else texts))
    return 0 if whole and (comparison is None or comparison.equal) else 1


if __name__ == "__main__":
    run_command_line(main)
