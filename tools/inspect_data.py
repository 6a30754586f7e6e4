"""Describe a data set, check it against its checksum, and show its documents."""

import argparse
from pathlib import Path

from calm_megatron.config.errors import run_command_line
from calm_megatron.data.inspect import describe, open_data_set, show_documents, token_statistics


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("prefix", type=Path, nargs="+", help="data sets, without .bin or .idx")
    add("--verify", action="store_true", help="read all ids and compare their SHA-256, range and ends")
    add("--tokens", action="store_true", help="count all ids: which are frequent, how many never occur")
    add("--show", type=int, nargs="+", metavar="N", help="show documents, counted from 0")
    add("--limit", type=int, default=200, metavar="N", help="tokens of each document to show (default: 200)")
    arguments = parser.parse_args()
    if arguments.limit < 0:
        parser.error("--limit must be 0 or more")
    return arguments


def main() -> None:
    """Describe data sets."""
    arguments = parse_arguments()
    for prefix in arguments.prefix:
        corpus = open_data_set(prefix, arguments.verify)
        told = [describe(corpus)]
        if arguments.verify:
            told.append("verified   the ids are as written, within the vocabulary, and end with their documents")
        if arguments.tokens:
            told.append(token_statistics(corpus))
        if arguments.show:
            told.append(show_documents(corpus, arguments.show, arguments.limit))
        print("\n".join(told))


if __name__ == "__main__":
    run_command_line(main)
