"""Train a byte-level BPE tokenizer from text or JSONL."""

import argparse
from pathlib import Path

from calm_megatron.config.errors import run_command_line
from calm_megatron.data.arguments import add_corpus_arguments, open_reader
from calm_megatron.data.train_tokenizer import train_tokenizer


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_corpus_arguments(parser)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="FOLDER", help="write tokenizer.json and its settings here")
    add("--vocab-size", type=int, required=True, help="all ids, with 256 bytes and 2 special tokens")
    add("--keep-every", type=int, default=1, metavar="N", help="learn from every N-th document only (default: 1)")
    add("--overwrite", action="store_true", help="replace the tokenizer in FOLDER")
    return parser.parse_args()


def main() -> None:
    """Train and write a tokenizer."""
    arguments = parse_arguments()
    reader = open_reader(arguments)
    trained = train_tokenizer(
        reader,
        arguments.output,
        arguments.vocab_size,
        keep_every=arguments.keep_every,
        overwrite=arguments.overwrite,
    )
    print(f"tokenizer  {trained.path}")
    print(f"read       {reader.documents:,} documents, {reader.text_bytes / 1e6:,.2f} MB of text")
    print(f"vocabulary {trained.vocab_size:,}")
    if reader.invalid_count:
        print(f"warning    {reader.invalid_count:,} invalid records left out")
    if trained.vocab_size < trained.requested_vocab_size:
        print(
            f"warning    {trained.requested_vocab_size:,} were asked for, but the text has no more pairs to merge; "
            f"set model.vocab_size to {trained.vocab_size}"
        )


if __name__ == "__main__":
    run_command_line(main)
