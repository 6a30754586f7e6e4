"""From the settings of a run to its data sets: opened, split, blended, and checked against each other."""

from collections.abc import Sequence
from glob import glob, has_magic

import numpy as np
from numpy.typing import NDArray

from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import DataConfig
from calm_megatron.data.blend import BlendedSequences, JoinedSequences, whole_shares
from calm_megatron.data.indexed import IndexedCorpus
from calm_megatron.data.meaning import demand_one_meaning
from calm_megatron.data.patching import PatchedDataset
from calm_megatron.data.sequences import Sequences
from calm_megatron.data.shard_sequences import ShardSequences
from calm_megatron.data.splits import split_documents

_NAMES = {"train": "training", "valid": "validation", "test": "test"}
Part = tuple[IndexedCorpus, NDArray[np.int64] | None]
"""A data set and the documents that are taken of it, or all."""


def prefixes(paths: str | Sequence[str]) -> list[str]:
    """Data sets that a setting names; a pattern such as `data/web-*` stands for those that match, sorted.

    Raises:
        UserError: nothing matches.
    """
    named = [paths] if isinstance(paths, str) else list(paths)
    found = [prefix for path in named for prefix in (_matching(path) if has_magic(path) else [path])]
    if len(set(found)) < len(found):
        raise UserError("a data set is named twice", ", ".join(found), "name each once; weights say how much of it")
    return found


def _matching(pattern: str) -> list[str]:
    found = sorted(file.removesuffix(".idx") for file in glob(f"{pattern}.idx"))
    if not found:
        raise UserError("no data set matches the pattern", f"{pattern}.idx", "make one with tools/preprocess_data.py")
    return found


def open_splits(config: DataConfig, patch_size: int, seed: int) -> dict[str, Sequences]:
    """Sequences of each split that the settings name, by "train", "valid" and "test".

    Training data is shuffled by `seed` and endless; validation and test are in their order and end.

    Raises:
        UserError: a data set is missing or damaged, paths contradict each other, data sets are of different
            tokenizers, or a split does not fill a sequence.
    """
    opened = _open_parts(config)
    meanings = {str(corpus.prefix): corpus.facts.meaning for parts in opened.values() for corpus, _ in parts}
    splits: dict[str, Sequences] = {}
    if config.train_shards is not None:
        splits["train"] = ShardSequences(
            config.train_shards,
            patch_size=patch_size,
            seq_length=config.seq_length,
            align_documents=config.align_documents,
            seed=seed,
            streams=config.shard_streams,
        )
        meanings[config.train_shards] = splits["train"].meaning
    demand_one_meaning(meanings)
    for name, parts in opened.items():
        sets = [
            PatchedDataset(
                corpus,
                documents,
                name=_NAMES[name],
                patch_size=patch_size,
                seq_length=config.seq_length,
                align_documents=config.align_documents,
                seed=seed + place if name == "train" else None,
            )
            for place, (corpus, documents) in enumerate(parts)
            if documents is None or len(documents)
        ]
        if len(sets) == 1:
            splits[name] = sets[0]
        elif sets:
            splits[name] = JoinedSequences(sets) if name != "train" else _blended(config, sets)
    return splits


def _blended(config: DataConfig, sets: Sequence[PatchedDataset]) -> BlendedSequences:
    """The training sets in the proportions that the settings ask for; by default once through each at a time."""
    weights, setting = config.blend_weights, "data.blend_weights"
    if weights is None:
        epochs = config.blend_epochs or (1.0,) * len(sets)
        setting = "data.blend_epochs"
    given = weights or epochs
    if len(given) != len(sets):
        raise UserError(f"{len(given)} numbers for {len(sets)} data sets", setting, "give one for each, in their order")
    if weights is not None:
        return BlendedSequences(sets, whole_shares(weights))
    return BlendedSequences(
        sets, whole_shares([each * part.sequences_per_epoch for each, part in zip(epochs, sets, strict=True)])
    )


def _open_parts(config: DataConfig) -> dict[str, list[Part]]:
    """Data sets and documents of each split that the configuration names."""
    own = {"train": config.train_data_path, "valid": config.valid_data_path, "test": config.test_data_path}
    given = {name: path for name, path in own.items() if path is not None}
    if config.data_path is None:
        return {name: [(IndexedCorpus.open(prefix), None) for prefix in prefixes(path)] for name, path in given.items()}
    if given:
        raise UserError(
            "one data set to split and data sets of their own contradict each other",
            f"data.data_path and {', '.join(f'data.{name}_data_path' for name in given)}",
            "set one or the other",
        )
    parts: dict[str, list[Part]] = {"train": [], "valid": [], "test": []}
    for prefix in prefixes(config.data_path):
        corpus = IndexedCorpus.open(prefix)
        split = split_documents(corpus.lengths_D, config.split)
        for name in parts:
            parts[name].append((corpus, getattr(split, name)))
    return parts
