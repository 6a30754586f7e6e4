"""The side file of a data set: what its ids mean and what the other two files must be.

megatron-core's `.bin` and `.idx` hold no checksum and no word about the tokenizer; `<prefix>.facts.json` does.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from calm_megatron.config.atomic import write_atomically
from calm_megatron.config.errors import UserError
from calm_megatron.data.meaning import Meaning
from calm_megatron.data.tokenizer import tokenizer_fingerprint

FORMAT = "calm_megatron data set 1"


@dataclass(frozen=True, kw_only=True)
class CorpusFacts:
    """Everything there is to know about a `.bin`/`.idx` pair."""

    format: str = FORMAT
    documents: int
    tokens: int
    """Ids in the `.bin`, one end-of-document id for each document included."""
    text_bytes: int | None
    """Bytes of the texts in UTF-8; none where it is unknown, as of some documents of a data set."""
    unknown_tokens: int | None
    """Ids that stand for what the vocabulary cannot express."""
    vocab_size: int
    eod_id: int
    pad_id: int
    """Not in the `.bin`; fills documents up to whole patches when they are read."""
    dtype: str
    bin_bytes: int
    bin_sha256: str
    tokenizer: str
    """Absolute path of the tokenizer when the data set was made."""
    tokenizer_relative: str
    """The same, seen from the folder of the data set, for when both are moved together."""
    tokenizer_fingerprint: str
    sources: tuple[str, ...]
    empty_documents: int | None
    """Documents without visible text, left out."""
    invalid_records: int | None
    """Records left out because they could not be read."""

    @property
    def meaning(self) -> Meaning:
        """What the ids mean."""
        return Meaning(self.tokenizer_fingerprint, self.vocab_size, self.eod_id, self.pad_id)


def bin_file(prefix: Path) -> Path:
    """The ids."""
    return prefix.with_name(prefix.name + ".bin")


def idx_file(prefix: Path) -> Path:
    """Where each document begins."""
    return prefix.with_name(prefix.name + ".idx")


def facts_file(prefix: Path) -> Path:
    """The side file."""
    return prefix.with_name(prefix.name + ".facts.json")


def write_facts(prefix: Path, facts: CorpusFacts) -> None:
    """Write the side file, atomically."""
    write_atomically(facts_file(prefix), (json.dumps(asdict(facts), indent=2) + "\n").encode())


def read_facts(prefix: Path) -> CorpusFacts:
    """Read the side file.

    Raises:
        UserError: it is missing, damaged or of another version.
    """
    file = facts_file(prefix)
    again = "make the data set again with tools/preprocess_data.py"
    try:
        facts = TypeAdapter(CorpusFacts).validate_json(file.read_bytes())
    except FileNotFoundError:
        raise UserError("the data set has no side file, so its tokenizer is unknown", str(file), again) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"the side file is damaged: {place} {first['msg']}".strip(), str(file), again) from None
    if facts.format != FORMAT:
        raise UserError(f'the side file is of another version: "{facts.format}", not "{FORMAT}"', str(file), again)
    return facts


def find_tokenizer(prefix: Path, facts: CorpusFacts) -> Path:
    """Folder of the tokenizer that the data set was made with, looked for relative to the data set, then where it was.

    Raises:
        UserError: it is gone, or no longer the same.
    """
    relative = Path(os.path.normpath(prefix.parent / facts.tokenizer_relative))
    candidates = [relative, Path(facts.tokenizer)]
    there = [path for path in candidates if path.exists()]
    for path in there:
        if tokenizer_fingerprint(path) == facts.tokenizer_fingerprint:
            return path
    state = "is not the one the data set was made with (its fingerprint differs)" if there else "is gone"
    raise UserError(
        f"the tokenizer {state}",
        " or ".join(dict.fromkeys(map(str, there or candidates))),
        f"put the tokenizer with SHA-256 {facts.tokenizer_fingerprint} there",
    )
