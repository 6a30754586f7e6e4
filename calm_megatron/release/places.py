"""Where results come to lie: folders that appear whole or not at all, and the tokenizer's files beside them."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from calm_megatron.checkpoint import publish
from calm_megatron.config.errors import UserError

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, under a hidden name; it gets its own when the block ends well, else it goes.

    Raises:
        UserError: something has the name already, or the disk refuses.
    """
    if target.exists() or target.is_symlink():
        raise UserError("there is something of this name", str(target), "name a folder that does not exist")
    aside = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        for path in sorted(aside.rglob("*")):
            publish.sync(path)
        publish.publish(aside, target)
    except OSError as error:
        raise UserError(
            f"the result could not be written: {error}", str(target), "make room, or name another"
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def copy_tokenizer(source: Path, target: Path) -> bool:
    """Copy the tokenizer's files of a folder, if there are any, and say so."""
    found = [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    for file in found:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / file.name)
    return bool(found)
