"""What the ids of a data set mean."""

from collections.abc import Mapping
from typing import NamedTuple

from calm_megatron.config.errors import UserError


class Meaning(NamedTuple):
    """What the ids of a data set mean; data sets of different meanings do not mix."""

    tokenizer_fingerprint: str
    """SHA-256 of the `tokenizer.json`."""
    vocab_size: int
    """Entries of the vocabulary, with the pad token."""
    eod_id: int
    """Id at the end of each document."""
    pad_id: int
    """Id that fills documents up to whole patches."""


def demand_one_meaning(meanings: Mapping[str, Meaning]) -> None:
    """Refuse data sets, by their names, whose ids do not mean the same.

    Raises:
        UserError: tokenizer, vocabulary, end or pad ids differ.
    """
    if len(set(meanings.values())) > 1:
        raise UserError(
            "the data sets were made with different tokenizers", " and ".join(meanings), "make them with the same one"
        )
