"""Train a byte-level BPE tokenizer from text or JSONL."""

import argparse
from pathlib import Path

from calm_megatron.config.errors import run_command_line
from calm_megatron.data.documents import DocumentReader, find_sources
from calm_megatron.data.train_tokenizer import train_tokenizer


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="PATH",
        help="files or folders: .jsonl, .json, .txt, .md, also .gz, .zst, .xz",
    )  # fmt: skip
    parser.add_argument("--input-format", choices=("jsonl", "text"), help="read all files this way, whatever their endings")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="write tokenizer.json and its settings here")
    parser.add_argument("--vocab-size", type=int, required=True, help="all ids, with 256 bytes and 2 special tokens")
    parser.add_argument("--json-key", default="text", metavar="KEY", help="key of the text in each JSON object (default: text)")
    parser.add_argument(
        "--document-separator", metavar="LINE",
        help="cut text files into documents at lines equal to this; '' stands for blank lines (default: a file is a document)",
    )  # fmt: skip
    parser.add_argument("--keep-every", type=int, default=1, metavar="N", help="learn from every N-th document (default: 1)")
    parser.add_argument("--skip-invalid", action="store_true", help="leave invalid lines and texts out")
    parser.add_argument("--overwrite", action="store_true", help="replace the tokenizer in FOLDER")
    return parser.parse_args()


def main() -> None:
    """Train and write a tokenizer."""
    arguments = parse_arguments()
    reader = DocumentReader(
        find_sources(arguments.input, arguments.input_format),
        json_key=arguments.json_key,
        document_separator=arguments.document_separator,
        skip_invalid=arguments.skip_invalid,
    )
    trained = train_tokenizer(
        reader, arguments.output, arguments.vocab_size, keep_every=arguments.keep_every, overwrite=arguments.overwrite
    )
    print(f"tokenizer  {trained.path}")
    print(f"read       {reader.documents:,} documents, {reader.text_bytes / 1e6:,.2f} MB; {reader.invalid_count:,} invalid left out")
    print(f"vocabulary {trained.vocab_size:,}")
    if trained.vocab_size < trained.requested_vocab_size:
        print(
            f"warning    {trained.requested_vocab_size:,} were asked for, but the text has no more pairs to merge; "
            f"set vocab_size to {trained.vocab_size}"
        )


if __name__ == "__main__":
    run_command_line(main)
