"""Turn text or JSONL into a data set: megatron-core `.bin` and `.idx`, and a side file that names the tokenizer."""

import argparse
from pathlib import Path

from calm_megatron.config.errors import run_command_line
from calm_megatron.data.documents import DocumentReader, find_sources
from calm_megatron.data.indexed import IndexedCorpus
from calm_megatron.data.preprocess import preprocess
from calm_megatron.data.tokenizer import Tokenizer


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", nargs="+", metavar="PATH", help="files or folders: .jsonl, .json, .txt, .md, also .gz, .zst, .xz")
    parser.add_argument("--input-format", choices=("jsonl", "text"), help="read all files this way, whatever their endings")
    parser.add_argument("--output-prefix", type=Path, metavar="PREFIX", help="write PREFIX.bin, PREFIX.idx and PREFIX.json")
    parser.add_argument("--tokenizer", metavar="PATH", help="folder with a Hugging Face tokenizer.json")
    parser.add_argument("--json-key", default="text", metavar="KEY", help="key of the text in each JSON object (default: text)")
    parser.add_argument(
        "--document-separator", metavar="LINE",
        help="cut text files into documents at lines equal to this; '' stands for blank lines (default: a file is a document)",
    )  # fmt: skip
    parser.add_argument("--skip-invalid", action="store_true", help="leave invalid lines and texts out, and report them")
    parser.add_argument("--allow-lossy", action="store_true", help="accept a tokenizer that does not give the text back")
    parser.add_argument("--overwrite", action="store_true", help="replace the data set at PREFIX")
    parser.add_argument("--verify", type=Path, metavar="PREFIX", help="only check an existing data set against its checksum")
    arguments = parser.parse_args()
    needed = ("input", "output_prefix", "tokenizer")
    if arguments.verify is None and any(getattr(arguments, name) is None for name in needed):
        parser.error("--input, --output-prefix and --tokenizer are needed")
    if arguments.verify is not None and any(getattr(arguments, name) is not None for name in needed):
        parser.error("--verify stands alone")
    return arguments


def main() -> None:
    """Make or verify a data set."""
    arguments = parse_arguments()
    if arguments.verify is not None:
        corpus = IndexedCorpus.open(arguments.verify)
        corpus.verify()
        print(f"{arguments.verify}: {corpus.facts.documents:,} documents, {corpus.facts.tokens:,} tokens, checksum agrees")
        return
    reader = DocumentReader(
        find_sources(arguments.input, arguments.input_format),
        json_key=arguments.json_key,
        document_separator=arguments.document_separator,
        skip_invalid=arguments.skip_invalid,
    )
    tokenizer = Tokenizer.load(arguments.tokenizer)
    print(
        preprocess(
            reader, tokenizer, arguments.output_prefix, allow_lossy=arguments.allow_lossy, overwrite=arguments.overwrite
        )
    )


if __name__ == "__main__":
    run_command_line(main)
