"""Make a tokenizer.json of Llama-3's tiktoken model (tokenizer.model), or of a SentencePiece BPE."""

import argparse
from pathlib import Path

from calm_megatron.config.errors import run_command_line
from calm_megatron.data.import_tokenizer import import_tokenizer


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--input", type=Path, required=True, metavar="FILE", help="the model")
    add("--output", type=Path, required=True, metavar="FOLDER", help="write tokenizer.json and its settings here")
    add("--overwrite", action="store_true", help="replace the tokenizer in FOLDER")
    return parser.parse_args()


def main() -> None:
    """Import a tokenizer."""
    arguments = parse_arguments()
    tokenizer = import_tokenizer(arguments.input, arguments.output, overwrite=arguments.overwrite)
    way = "tiktoken" if tokenizer.with_fast_path().is_fast else "tokenizers"
    print(f"{arguments.output}: {tokenizer.vocab_size:,} entries with the pad token, encoded by {way}")


if __name__ == "__main__":
    run_command_line(main)
