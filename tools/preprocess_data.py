"""Turn text or JSONL into a data set: megatron-core `.bin` and `.idx`, and a side file that names the tokenizer."""

import argparse
from pathlib import Path

from calm_megatron.config.errors import run_command_line
from calm_megatron.data.arguments import add_corpus_arguments, open_reader
from calm_megatron.data.indexed import IndexedCorpus
from calm_megatron.data.preprocess import preprocess
from calm_megatron.data.tokenizer import Tokenizer

_NEEDED = ("input", "tokenizer", "output_prefix")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_corpus_arguments(parser, required=False)
    add = parser.add_argument
    add("--tokenizer", metavar="PATH", help="folder with a Hugging Face tokenizer.json")
    add("--output-prefix", type=Path, metavar="PREFIX", help="write PREFIX.bin, PREFIX.idx and PREFIX.facts.json")
    add("--allow-lossy", action="store_true", help="accept a tokenizer that does not give the text back")
    add("--overwrite", action="store_true", help="replace the data set at PREFIX")
    add("--verify", type=Path, metavar="PREFIX", help="only check the data set at PREFIX against its checksum")
    arguments = parser.parse_args()
    given = [name for name in _NEEDED if getattr(arguments, name) is not None]
    if arguments.verify is None and len(given) < len(_NEEDED):
        parser.error("--input, --tokenizer and --output-prefix are needed")
    if arguments.verify is not None and given:
        parser.error("--verify stands alone")
    return arguments


def main() -> None:
    """Make or verify a data set."""
    arguments = parse_arguments()
    if arguments.verify is not None:
        corpus = IndexedCorpus.open(arguments.verify)
        corpus.verify()
        facts = corpus.facts
        print(f"{arguments.verify}: {facts.documents:,} documents, {facts.tokens:,} tokens, as they were written")
        return
    report = preprocess(
        open_reader(arguments),
        Tokenizer.load(arguments.tokenizer),
        arguments.output_prefix,
        allow_lossy=arguments.allow_lossy,
        overwrite=arguments.overwrite,
    )
    print(report)


if __name__ == "__main__":
    run_command_line(main)
