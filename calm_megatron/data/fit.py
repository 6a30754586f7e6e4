"""Does a tokenizer fit a corpus: does it give the texts back, and does its fast path give the same ids?"""

from collections.abc import Iterable, Sequence

import numpy as np

from calm_megatron.config.errors import UserError
from calm_megatron.data.tokenizer import Tokenizer

SAMPLE_CHARACTERS = 100_000
LARGEST_UNKNOWN_SHARE = 0.01
_SHOWN_CHARACTERS = 40


def sample(texts: Iterable[str]) -> list[str]:
    """The first texts, for the checks that must come before anything is written."""
    taken, characters = list[str](), 0
    for text in texts:
        taken.append(text[:SAMPLE_CHARACTERS])
        characters += len(text)
        if characters >= SAMPLE_CHARACTERS:
            break
    return taken


def prove_fast_path(tokenizer: Tokenizer, texts: Sequence[str]) -> Tokenizer:
    """The tokenizer with its fast path, if it has one that gives the ids of `tokenizers` for all of these texts."""
    fast = tokenizer.with_fast_path()
    return fast if fast.is_fast and same_ids(fast, texts) else tokenizer


def same_ids(fast: Tokenizer, texts: Sequence[str]) -> bool:
    """Whether the fast path and `tokenizers` give the same ids for these texts."""
    pairs = zip(fast.encode_documents(texts), fast.without_fast_path().encode_documents(texts), strict=True)
    return all(np.array_equal(ours, theirs) for ours, theirs in pairs)


def _first_difference(text: str, back: str) -> str:
    unequal = (place for place, (a, b) in enumerate(zip(text, back, strict=False)) if a != b)
    at = next(unequal, min(len(text), len(back)))
    shown = slice(max(0, at - _SHOWN_CHARACTERS // 2), at + _SHOWN_CHARACTERS // 2)
    return f"{text[shown]!r} becomes {back[shown]!r}"


def losses(tokenizer: Tokenizer, texts: Sequence[str]) -> str:
    """What is lost when texts go to ids and back, in a sentence; empty if nothing is."""
    ids = tokenizer.encode_batch(texts)
    unknown = sum(document.count(tokenizer.unk_id) for document in ids) if tokenizer.unk_id is not None else 0
    total = sum(map(len, ids))
    if unknown > LARGEST_UNKNOWN_SHARE * total:
        return f"{unknown / total:.1%} of the ids are unknown to the tokenizer"
    changed = [(text, back) for text, back in zip(texts, map(tokenizer.decode, ids), strict=True) if text != back]
    if not changed:
        return ""
    return f"{len(changed)} of the first {len(texts)} documents do not come back from their ids; " + _first_difference(
        *changed[0]
    )


def misfit(tokenizer: Tokenizer, problem: str) -> UserError:
    """The refusal of a tokenizer that loses something."""
    return UserError(
        f"the tokenizer does not fit the data: {problem}",
        str(tokenizer.path),
        "take a byte-level tokenizer (tools/train_tokenizer.py trains one), or accept the loss with --allow-lossy",
    )
