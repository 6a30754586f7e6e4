"""Where a data set is written: the prefix of its files, whole or in shards, and what has that name already."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from calm_megatron.config.errors import UserError
from calm_megatron.data.corpus_facts import bin_file, facts_file, idx_file


def output_prefix(text: str) -> Path:
    """A prefix as it stands on the command line.

    Raises:
        UserError: it names a folder, beside which the files would lie.
    """
    path = Path(text)
    if not text or text.endswith(os.sep) or path.is_dir():
        raise UserError(
            "the output is a folder, and not a prefix of files", text or "''", "add a name, such as folder/corpus"
        )
    return path


def refuse_repeated(prefixes: Sequence[Path]) -> None:
    """Stop where two data sets would be written under one name.

    Raises:
        UserError: they would.
    """
    seen: set[Path] = set()
    for prefix in prefixes:
        real = prefix.parent.resolve() / prefix.name
        if real in seen:
            raise UserError("the output is given twice", str(prefix), "give each data set a prefix of its own")
        seen.add(real)


def refuse_existing(*prefixes: Path) -> None:
    """Stop where data sets are not to be replaced.

    Raises:
        UserError: there are some.
    """
    _refuse([idx_file(prefix) for prefix in prefixes])


def refuse_existing_corpus(prefix: Path, report: Path) -> None:
    """The same for a corpus, which is one data set or shards, with its report.

    Raises:
        UserError: one of them is there.
    """
    _refuse([*(idx_file(name) for name in (prefix, *shards_of(prefix))), report])


def _refuse(files: Sequence[Path]) -> None:
    """Name the files that are there."""
    taken = [str(file) for file in files if file.exists()]
    if taken:
        more = f" and {len(taken) - 3:,} more" if len(taken) > 3 else ""
        raise UserError(
            "there is a data set already",
            ", ".join(taken[:3]) + more,
            "choose another prefix, or replace it with --overwrite",
        )


def shard_prefix(prefix: Path, number: int) -> Path:
    """Prefix of a shard of the corpus at `prefix`."""
    return prefix.with_name(f"{prefix.name}-{number:05d}")


def shards_of(prefix: Path) -> list[Path]:
    """Prefixes of the shards that have a file, half removed ones among them, in their order."""
    pattern = re.compile(rf"({re.escape(prefix.name)}-\d{{5}})\.(idx|bin|facts\.json)", re.ASCII)
    names = os.listdir(prefix.parent) if prefix.parent.is_dir() else []
    return [prefix.with_name(name) for name in sorted({found[1] for found in map(pattern.fullmatch, names) if found})]


def remove_surplus(prefix: Path, kept: Sequence[Path]) -> None:
    """Remove what a corpus at `prefix` had, whole or in shards, but for the data sets of the new one.

    Raises:
        UserError: a file cannot be removed.
    """
    try:
        for old in (prefix, *shards_of(prefix)):
            if old not in kept:
                for file in (idx_file(old), bin_file(old), facts_file(old)):
                    file.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot remove what the data set replaces: {error.strerror}", str(error.filename)) from None
