"""Turn text, JSONL or parquet into a data set: megatron-core `.bin` and `.idx`, and a side file."""

import argparse

from calm_megatron.config.errors import run_command_line
from calm_megatron.data.arguments import add_corpus_arguments, open_reader
from calm_megatron.data.prefixes import output_prefix
from calm_megatron.data.preprocess import PreprocessOptions, preprocess
from calm_megatron.data.tokenizer import Tokenizer


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_corpus_arguments(parser)
    add = parser.add_argument
    add("--tokenizer", required=True, metavar="PATH", help="folder with a Hugging Face tokenizer.json")
    add(
        "--output-prefix",
        type=output_prefix,
        required=True,
        metavar="PREFIX",
        help="write PREFIX.bin, PREFIX.idx, PREFIX.facts.json and PREFIX.report.json",
    )
    add("--workers", type=int, metavar="N", help="processes that encode (default: one for each core)")
    add(
        "--tokens-per-shard",
        type=int,
        metavar="N",
        help="cut the corpus into data sets PREFIX-00000, PREFIX-00001, ... of about N tokens (default: one data set)",
    )
    add("--no-fast-path", action="store_true", help="encode by tokenizers, not by tiktoken where that gives the same")
    add("--allow-lossy", action="store_true", help="accept a tokenizer that does not give the text back")
    add("--overwrite", action="store_true", help="replace the data set at PREFIX, with all its shards")
    add("--restart", action="store_true", help="do not go on with what a killed run left in PREFIX.parts")
    arguments = parser.parse_args()
    for name in ("workers", "tokens_per_shard"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more")
    return arguments


def main() -> None:
    """Make a data set."""
    arguments = parse_arguments()
    options = PreprocessOptions(
        workers=arguments.workers,
        allow_lossy=arguments.allow_lossy,
        overwrite=arguments.overwrite,
        restart=arguments.restart,
        fast_path=not arguments.no_fast_path,
        tokens_per_shard=arguments.tokens_per_shard,
    )
    tokenizer = Tokenizer.load(arguments.tokenizer)
    print(preprocess(open_reader(arguments), tokenizer, arguments.output_prefix, options))


if __name__ == "__main__":
    run_command_line(main)
