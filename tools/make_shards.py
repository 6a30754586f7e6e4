"""Turn data sets, or files of text, into tar shards, for training from a web server or an object store.

See the setting data.train_shards. Large corpora are best made into a data set first, by all cores.
"""

import argparse
from itertools import chain
from pathlib import Path

from calm_megatron.config.errors import run_command_line
from calm_megatron.data.arguments import add_corpus_arguments, open_reader
from calm_megatron.data.indexed import IndexedCorpus
from calm_megatron.data.meaning import demand_one_meaning
from calm_megatron.data.tokenizer import Tokenizer

_OF_TEXTS = ("input_format", "json_key", "document_separator", "skip_invalid")
_OF_DATA_SETS = ("seed",)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_corpus_arguments(parser, required=False)
    add = parser.add_argument
    add("--data-sets", type=Path, nargs="+", metavar="PREFIX", help="data sets, without .bin or .idx, not --input")
    add("--tokenizer", metavar="PATH", help="for --input: folder with a Hugging Face tokenizer.json")
    add("--output", type=Path, required=True, metavar="FOLDER", help="write shard-000000.tar, ... and shards.json here")
    add("--shard-mb", type=float, default=64.0, metavar="N", help="size of a shard in MB (default: 64)")
    add("--seed", type=int, default=0, help="of the order of the data sets' documents (default: 0)")
    add("--overwrite", action="store_true", help="replace the shards in FOLDER")
    arguments = parser.parse_args()
    if (arguments.data_sets is None) == (arguments.input is None):
        parser.error("give --data-sets, or --input with --tokenizer")
    if (arguments.input is None) != (arguments.tokenizer is None):
        parser.error("--input and --tokenizer go together")
    if arguments.shard_mb <= 0:
        parser.error("--shard-mb must be above 0")
    if arguments.seed < 0:
        parser.error("--seed must be 0 or more")
    source, others = ("--data-sets", _OF_TEXTS) if arguments.input is None else ("--input", _OF_DATA_SETS)
    for name in others:
        if getattr(arguments, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} has no effect with {source}; leave it out")
    return arguments


def main() -> None:
    """Write shards."""
    arguments = parse_arguments()
    # Imported here because webdataset imports torch, which `--help` need not wait for.
    from calm_megatron.data.tar_shards import corpus_documents, make_shards, text_documents

    if arguments.input is not None:
        tokenizer = Tokenizer.load(arguments.tokenizer)
        documents, meaning = text_documents(open_reader(arguments), tokenizer), tokenizer.meaning
    else:
        corpora = [IndexedCorpus.open(prefix) for prefix in arguments.data_sets]
        demand_one_meaning({str(corpus.prefix): corpus.facts.meaning for corpus in corpora})
        documents = chain.from_iterable(corpus_documents(corpus, arguments.seed) for corpus in corpora)
        meaning = corpora[0].facts.meaning
    size = round(arguments.shard_mb * 1e6)
    manifest = make_shards(documents, meaning, arguments.output, size, overwrite=arguments.overwrite)
    tokens = sum(shard.tokens for shard in manifest.shards)
    print(f"{arguments.output}: {len(manifest.shards):,} shards, {tokens:,} tokens")


if __name__ == "__main__":
    run_command_line(main)
