"""Tokenizers of other kinds as a `tokenizer.json`: Llama-3's tiktoken model, and SentencePiece BPE."""

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from calm_megatron.config.atomic import write_atomically
from calm_megatron.config.errors import UserError
from calm_megatron.data.fast_bpe import byte_characters
from calm_megatron.data.tokenizer import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Tokenizer

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""How Llama-3 cuts words (llama-models, `llama3/tokenizer.py`)."""
_LLAMA3_SPECIAL = {0: "<|begin_of_text|>", 1: "<|end_of_text|>", 6: "<|start_header_id|>", 7: "<|end_header_id|>",
                   9: "<|eot_id|>"}  # fmt: skip
_LLAMA3_SPECIAL_COUNT = 256
_SPACE = "▁"
_SENTENCEPIECE_BPE = 2


def import_tokenizer(model: Path, output: Path, *, overwrite: bool = False) -> Tokenizer:
    """Write `tokenizer.json` and `tokenizer_config.json` for a model into the folder `output`, and load them.

    Args:
        model: a tiktoken file (a token in base64 and its rank on each line) or a SentencePiece model.
        output: folder to write, made if needed.
        overwrite: replace a tokenizer that is there.

    Raises:
        UserError: the file is neither, or lacks single bytes, or asks for what a `tokenizer.json` does not do alike, or
            there is one already.
    """
    file = output / TOKENIZER_FILE
    if file.exists() and not overwrite:
        raise UserError("there is a tokenizer already", str(file), "choose another folder, or use --overwrite")
    try:
        content = model.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the model: {error.strerror}", str(model)) from None
    ranks = _tiktoken_ranks(content)
    if ranks is not None:
        _demand_all_bytes(ranks, model)
    backend, eos = _llama3(ranks) if ranks is not None else _sentencepiece(content, model)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "clean_up_tokenization_spaces": False}
    write_atomically(output / TOKENIZER_CONFIG_FILE, (json.dumps(settings, indent=2) + "\n").encode())
    write_atomically(file, backend.to_str().encode())
    return Tokenizer.load(output)


def _tiktoken_ranks(content: bytes) -> dict[bytes, int] | None:
    """Ranks of a tiktoken file; none if it is no such file."""
    try:
        pairs = [line.split() for line in content.splitlines()]
        return {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except (ValueError, binascii.Error):
        return None


def _demand_all_bytes(ranks: Mapping[bytes, int], path: Path) -> None:
    """Stop where a text could not be encoded, as by an empty or cut file."""
    missing = sum(bytes([byte]) not in ranks for byte in range(256))
    if missing:
        raise UserError(
            f"the tiktoken file is empty or cut: {missing} of the 256 single bytes are not in it",
            str(path),
            "copy the file again",
        )


def _merges(ranks: Mapping[Any, int], empty: Any) -> list[tuple[Any, Any]]:
    """Every way to join two tokens into a third, by the rank of the third, then of the parts."""
    found = []
    for token, rank in ranks.items():
        parts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [(ranks[a], ranks[b], a, b) for a, b in parts if a in ranks and b in ranks and empty not in (a, b)]
        found += [(rank, *pair) for pair in sorted(known)]
    return [(a, b) for _, _, _, a, b in sorted(found, key=lambda merge: merge[:3])]


def _llama3(ranks: dict[bytes, int]) -> tuple[tokenizers.Tokenizer, str]:
    characters = {byte: character for character, byte in byte_characters().items()}
    named = {token: "".join(characters[byte] for byte in token) for token in ranks}
    merges = [(named[a], named[b]) for a, b in _merges(ranks, b"")]
    vocabulary = {named[token]: rank for token, rank in ranks.items()}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    reserved = iter(range(_LLAMA3_SPECIAL_COUNT))
    special = [
        _LLAMA3_SPECIAL.get(place) or f"<|reserved_special_token_{next(reserved)}|>"
        for place in range(_LLAMA3_SPECIAL_COUNT)
    ]
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    return backend, _LLAMA3_SPECIAL[1]


def _sentencepiece(content: bytes, path: Path) -> tuple[tokenizers.Tokenizer, str]:
    # Imported here: only this needs it.
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2  # Its classes are made at import, so no type checker sees them.
    model = proto.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        raise UserError("neither a tiktoken file nor a SentencePiece model", str(path)) from None
    training, normalizing = model.trainer_spec, model.normalizer_spec
    unlike = {
        "it is no BPE": training.model_type != _SENTENCEPIECE_BPE,
        "it normalizes texts": bool(normalizing.precompiled_charsmap),
        "it removes spaces": normalizing.remove_extra_whitespaces,
        "it has no byte fallback": not training.byte_fallback,
    }
    if any(unlike.values()):
        raise UserError(
            f"this SentencePiece model is not imported: {', '.join(what for what, holds in unlike.items() if holds)}",
            str(path),
            "convert it to a tokenizer.json with transformers",
        )
    kinds = proto.ModelProto.SentencePiece.Type
    pieces = list(enumerate(model.pieces))
    vocabulary = {piece.piece: place for place, piece in pieces}
    # A higher score is merged first; scores of a BPE are ranks with a minus.
    merged = {piece.piece: place for place, piece in pieces if piece.type in (kinds.NORMAL, kinds.USER_DEFINED)}
    ordered = sorted(merged, key=lambda name: (-model.pieces[merged[name]].score, merged[name]))
    ranks = {name: rank for rank, name in enumerate(ordered)}
    unknown = next(piece.piece for _, piece in pieces if piece.type == kinds.UNKNOWN)
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=_merges(ranks, ""), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prepended = [normalizers.Prepend(_SPACE)] if normalizing.add_dummy_prefix else []
    backend.normalizer = normalizers.Sequence([*prepended, normalizers.Replace(" ", _SPACE)])
    stripped = [decoders.Strip(" ", 1, 0)] if normalizing.add_dummy_prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *stripped]
    )
    control = [piece.piece for _, piece in pieces if piece.type in (kinds.CONTROL, kinds.UNKNOWN)]
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in control])
    return backend, model.pieces[training.eos_id].piece
