"""Make data sets from data sets: join several, take a subset of one, or cut one by shares."""

import argparse
from pathlib import Path

from calm_megatron.config.errors import run_command_line
from calm_megatron.data.merge import merge, split, subset
from calm_megatron.data.prefixes import output_prefix


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--input", type=Path, nargs="+", required=True, metavar="PREFIX", help="data sets, without .bin or .idx")
    add("--output", type=output_prefix, nargs="+", required=True, metavar="PREFIX", help="what to write")
    add("--subset-tokens", type=int, metavar="N", help="take documents of one data set with N tokens in all")
    add("--split", metavar="SHARES", help='cut one data set as data.split does, such as "98,1,1": an output a share')
    add("--overwrite", action="store_true", help="replace data sets that are there")
    arguments = parser.parse_args()
    if arguments.subset_tokens is not None and arguments.split is not None:
        parser.error("--subset-tokens and --split exclude each other")
    if (arguments.subset_tokens is not None or arguments.split is not None) and len(arguments.input) != 1:
        parser.error("--subset-tokens and --split take one --input")
    if arguments.split is None and len(arguments.output) != 1:
        parser.error("give one --output; only --split writes several")
    return arguments


def main() -> None:
    """Write the data sets."""
    arguments = parse_arguments()
    inputs, outputs, overwrite = arguments.input, arguments.output, arguments.overwrite
    if arguments.split is not None:
        made = split(inputs[0], outputs, arguments.split, overwrite=overwrite)
    elif arguments.subset_tokens is not None:
        made = [subset(inputs[0], outputs[0], arguments.subset_tokens, overwrite=overwrite)]
    else:
        made = [merge(inputs, outputs[0], overwrite=overwrite)]
    for output, facts in zip(outputs, made, strict=True):
        print(f"{output}: {facts.documents:,} documents, {facts.tokens:,} tokens")


if __name__ == "__main__":
    run_command_line(main)
