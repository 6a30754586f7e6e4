"""Command-line options that say which documents to read, the same for every tool that reads some."""

import argparse

from calm_megatron.data.documents import DocumentReader
from calm_megatron.data.sources import find_sources


def add_corpus_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add `--input` and what goes with it."""
    add = parser.add_argument
    add(
        "--input",
        nargs="+",
        required=required,
        metavar="PATH",
        help="files, folders or quoted patterns of files that end in .jsonl, .json, .txt or .md, in these with .gz, "
        ".zst or .xz, or in .parquet",
    )
    add("--input-format", choices=("jsonl", "text", "parquet"), help="read all files this way, whatever their endings")
    add(
        "--json-key",
        default="text",
        metavar="KEY",
        help="key of the text in each JSON object, or column of parquet files (default: text)",
    )
    add(
        "--document-separator",
        metavar="LINE",
        help="cut text files into documents at lines equal to this, or, if it is empty, at blank lines "
        "(default: each text file is one document)",
    )
    add("--skip-invalid", action="store_true", help="leave invalid lines and texts out and report them, not stop")


def open_reader(arguments: argparse.Namespace) -> DocumentReader:
    """The reader that the options ask for.

    Raises:
        UserError: an input does not exist or cannot be told apart; see `find_sources`.
    """
    return DocumentReader(
        find_sources(arguments.input, arguments.input_format),
        json_key=arguments.json_key,
        document_separator=arguments.document_separator,
        skip_invalid=arguments.skip_invalid,
    )
