"""The fast path: byte-level BPE by tiktoken, several times quicker than `tokenizers` and made from the same file.

The two agree where the rank of a merge is the rank of what it makes, which is so in every vocabulary that was trained
as one. It is not taken on trust: `make_fast_bpe` refuses files whose parts it does not know to the letter,
`preprocess` compares both on texts of the corpus, and each text must give as many bytes of tokens as it has itself.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
from numpy.typing import NDArray

_GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_PLAIN_MODEL = {"dropout": (None, 0.0), "continuing_subword_prefix": (None, ""), "end_of_word_suffix": (None, "")}
_BYTES = 256


@cache
def byte_characters() -> dict[str, int]:
    """The character that stands for each byte in byte-level vocabularies (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(_BYTES) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(_BYTES + place): byte for place, byte in enumerate(others)}


@dataclass(frozen=True)
class FastBpe:
    """Texts to ids by tiktoken."""

    _encoding: tiktoken.Encoding
    _ids: NDArray[np.int32] | None
    """Vocabulary id of each of tiktoken's ranks; none where they are the same."""
    _sizes: NDArray[np.int32]
    """Bytes of each rank."""

    def encode(self, text: str) -> NDArray[np.int32] | None:
        """Ids of a text; none where tiktoken gives up or leaves something out, so that the other path takes over."""
        try:
            found = self._encoding.encode_ordinary(text)
        except BaseException as error:
            # Rust's panic is no Exception; its regular expressions give up on very long stretches of white space.
            if type(error).__name__ != "PanicException":
                raise
            return None
        ranks = np.fromiter(found, dtype=np.int32, count=len(found))
        if int(self._sizes[ranks].sum()) != len(text.encode()):
            return None
        return ranks if self._ids is None else self._ids[ranks]


def make_fast_bpe(file: Path) -> FastBpe | None:
    """The fast path of a `tokenizer.json`; none if the file asks for anything that tiktoken does not do."""
    definition: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    model = definition["model"]
    pattern = _pattern(definition)
    ranks = _ranks(model) if pattern is not None else None
    if pattern is None or ranks is None:
        return None
    special = all(token.get("special") for token in definition.get("added_tokens") or ())
    if not special:  # Others are cut out of the text before the merges.
        return None
    encoding = tiktoken.Encoding(file.parent.name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    characters = {byte: character for character, byte in byte_characters().items()}
    names = ["".join(characters[byte] for byte in token) for token in ranks]
    ids = np.array([model["vocab"][name] for name in names], dtype=np.int32)
    same = np.array_equal(ids, np.arange(len(ids)))
    return FastBpe(encoding, None if same else ids, np.array([len(token) for token in ranks], dtype=np.int32))


def _pattern(definition: dict[str, Any]) -> str | None:
    """The regular expression by which texts are cut into words, if that is all that happens to them."""
    if definition.get("normalizer") is not None:
        return None
    first = definition.get("pre_tokenizer") or {}
    steps = first.get("pretokenizers", []) if first.get("type") == "Sequence" else [first]
    if any(step.get("add_prefix_space") for step in steps):
        return None
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return _GPT2_PATTERN
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        split = steps[0]
        if split.get("behavior") == "Isolated" and not split.get("invert") and "Regex" in split["pattern"]:
            return str(split["pattern"]["Regex"])
    return None


def _ranks(model: dict[str, Any]) -> dict[bytes, int] | None:
    """Bytes of each token to its rank, 0 to n - 1: first the single bytes, then the merges in their order."""
    if model.get("type") != "BPE" or model.get("byte_fallback") or not model.get("vocab"):
        return None
    if any(model.get(name) not in plain for name, plain in _PLAIN_MODEL.items()):
        return None
    table = byte_characters()
    if any(character not in model["vocab"] for character in table):
        return None
    ranks = {bytes([byte]): byte for byte in range(_BYTES)}
    for merge in model["merges"]:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        name = "".join(pair)
        if name not in model["vocab"] or any(character not in table for character in name):
            return None
        ranks.setdefault(bytes(table[character] for character in name), len(ranks))
    if model.get("ignore_merges"):
        # Whole words are looked up before they are merged: one that no merge makes would be unknown to tiktoken.
        words = {bytes(table[character] for character in name) for name in model["vocab"] if set(name) <= table.keys()}
        if not words <= ranks.keys():
            return None
    return ranks
