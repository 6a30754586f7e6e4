"""Turn a data set into tar shards, for training from a web server or an object store: see data.train_shards."""

import argparse
from itertools import chain
from pathlib import Path

from calm_megatron.config.errors import run_command_line
from calm_megatron.data.corpus_facts import demand_one_meaning
from calm_megatron.data.indexed import IndexedCorpus
from calm_megatron.data.tar_shards import corpus_documents, make_shards


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--input", type=Path, nargs="+", required=True, metavar="PREFIX", help="data sets, without .bin or .idx")
    add("--output", type=Path, required=True, metavar="FOLDER", help="write shard-000000.tar, ... and shards.json here")
    add("--shard-mb", type=float, default=64.0, metavar="N", help="size of a shard in MB (default: 64)")
    add("--seed", type=int, default=0, help="of the order of the documents (default: 0)")
    add("--overwrite", action="store_true", help="replace the shards in FOLDER")
    arguments = parser.parse_args()
    if arguments.shard_mb <= 0:
        parser.error("--shard-mb must be above 0")
    return arguments


def main() -> None:
    """Write shards."""
    arguments = parse_arguments()
    corpora = [IndexedCorpus.open(prefix) for prefix in arguments.input]
    demand_one_meaning({str(corpus.prefix): corpus.facts.meaning for corpus in corpora})
    manifest = make_shards(
        chain.from_iterable(corpus_documents(corpus, arguments.seed) for corpus in corpora),
        corpora[0].facts.meaning,
        arguments.output,
        round(arguments.shard_mb * 1e6),
        overwrite=arguments.overwrite,
    )
    tokens = sum(shard.tokens for shard in manifest.shards)
    print(f"{arguments.output}: {len(manifest.shards):,} shards, {tokens:,} tokens")


if __name__ == "__main__":
    run_command_line(main)
