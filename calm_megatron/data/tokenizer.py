"""Text to ids and back, by a Hugging Face `tokenizer.json`.

Byte-level BPE, which most are, is encoded by tiktoken (`fast_bpe`), all else by `tokenizers`.

Ids are of the text alone: no BOS or EOS is added here, and the string of a special token that occurs in a text is
encoded as the ordinary characters it is, so that no document can end another by quoting `<|endoftext|>`.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from calm_megatron.config.errors import UserError
from calm_megatron.data.fast_bpe import FastBpe, make_fast_bpe
from calm_megatron.data.meaning import Meaning
from calm_megatron.data.pieces import split_text

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
_EOD_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
_PAD_NAMES = ("[PAD]", "<pad>", "<|pad|>", "<|finetune_right_pad_id|>")
_APPENDED_PAD = "[PAD]"
_BATCH_CHARACTERS = 2_000_000


def tokenizer_fingerprint(path: str | Path) -> str:
    """SHA-256 of the `tokenizer.json` at `path`, a file or its folder.

    Raises:
        UserError: there is no such file.
    """
    file = _tokenizer_file(Path(path))
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _tokenizer_file(path: Path) -> Path:
    file = path / TOKENIZER_FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            "there is no tokenizer",
            str(file),
            f"give a folder with a Hugging Face {TOKENIZER_FILE}, or train one with tools/train_tokenizer.py",
        )
    return file


def _configured_tokens(folder: Path) -> dict[str, str]:
    """Names of special tokens by role, from the files beside `tokenizer.json`."""
    names: dict[str, str] = {}
    for file in (folder / "special_tokens_map.json", folder / TOKENIZER_CONFIG_FILE):
        if not file.is_file():
            continue
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"the tokenizer's settings are not valid JSON: {error}", str(file)) from None
        for role in ("eos_token", "pad_token", "bos_token"):
            value = settings.get(role) if isinstance(settings, dict) else None
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                names[role] = value
    return names


def _load_backend(file: Path) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # The library raises bare Exception.
        raise UserError(f"not a Hugging Face tokenizer: {error}", str(file)) from None
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True  # That is: as the plain text they are.
    return backend


def _find_eod(backend: tokenizers.Tokenizer, configured: str | None, file: Path) -> int:
    for name in (configured,) if configured else _EOD_NAMES:
        identifier = backend.token_to_id(name)
        if identifier is not None:
            return int(identifier)
    tried = f'eos_token "{configured}" is not in the vocabulary' if configured else f"none of {', '.join(_EOD_NAMES)}"
    raise UserError(
        f"the tokenizer has no end-of-document token: {tried}",
        str(file),
        f'name one in {TOKENIZER_CONFIG_FILE} as "eos_token"',
    )


def _find_or_append_pad(backend: tokenizers.Tokenizer, configured: str | None, eod_id: int) -> int:
    """The pad token's id; a configured pad that is the end-of-document token is no pad, as the two must differ."""
    for name in (configured, *_PAD_NAMES):
        identifier = backend.token_to_id(name) if name else None
        if identifier is not None and identifier != eod_id:
            return int(identifier)
    backend.add_special_tokens([_APPENDED_PAD])
    return backend.get_vocab(with_added_tokens=True)[_APPENDED_PAD]


def _find_unknown(file: Path, backend: tokenizers.Tokenizer) -> int | None:
    model: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["model"]
    if isinstance(model.get("unk_id"), int):
        return int(model["unk_id"])
    name = model.get("unk_token")
    return backend.token_to_id(name) if isinstance(name, str) else None


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary with its end-of-document and pad ids."""

    path: Path
    """Folder of the tokenizer, or the file that was given."""
    fingerprint: str
    """SHA-256 of `tokenizer.json`."""
    vocab_size: int
    """Largest id plus one, with the pad token that was appended if there was none."""
    eod_id: int
    pad_id: int
    bos_id: int | None
    unk_id: int | None
    """Id of what the vocabulary cannot express; none in byte-level ones."""
    _backend: tokenizers.Tokenizer = field(repr=False, compare=False)
    _fast: FastBpe | None = field(default=None, repr=False, compare=False)
    _prepends_space: bool = False
    """Whether each text gets a space in front before it is encoded, as in SentencePiece."""

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read `tokenizer.json` at `path`, the file or its folder.

        Special tokens come from `tokenizer_config.json` or `special_tokens_map.json`, else from the usual names.
        Without a pad token, "[PAD]" is appended to the vocabulary, as the official code does.

        Raises:
            UserError: there is no such file, it cannot be read, or it has no end-of-document token.
        """
        file = _tokenizer_file(Path(path))
        fingerprint = tokenizer_fingerprint(file)
        backend, configured = _load_backend(file), _configured_tokens(file.parent)
        eod_id = _find_eod(backend, configured.get("eos_token"), file)
        pad_id = _find_or_append_pad(backend, configured.get("pad_token"), eod_id)
        bos = configured.get("bos_token")
        return cls(
            path=Path(path),
            fingerprint=fingerprint,
            vocab_size=max(backend.get_vocab(with_added_tokens=True).values()) + 1,
            eod_id=eod_id,
            pad_id=pad_id,
            bos_id=backend.token_to_id(bos) if bos else None,
            unk_id=_find_unknown(file, backend),
            _backend=backend,
            _prepends_space=_prepends_space(file),
        )

    @property
    def meaning(self) -> Meaning:
        """What its ids mean."""
        return Meaning(self.fingerprint, self.vocab_size, self.eod_id, self.pad_id)

    @property
    def is_fast(self) -> bool:
        """Whether tiktoken encodes."""
        return self._fast is not None

    def with_fast_path(self) -> "Tokenizer":
        """The same tokenizer, encoding by tiktoken if it can; whether the ids agree is for the caller to compare."""
        return replace(self, _fast=make_fast_bpe(_tokenizer_file(self.path)))

    def without_fast_path(self) -> "Tokenizer":
        """The same tokenizer, encoding by `tokenizers`."""
        return replace(self, _fast=None)

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        return [ids.tolist() for ids in self.encode_documents(texts)]

    def encode_documents(self, texts: Iterable[str]) -> Iterator[NDArray[np.int32]]:
        """Ids of each text, in order, for streams of any length and texts of any size.

        Texts are cut into pieces first (see `pieces`); memory is bounded by the pieces, not by the text. Without the
        fast path they are encoded in batches, on all cores unless this is a worker process, and up to one batch is
        read ahead of what is yielded.
        """
        if self._fast is not None:
            for text in texts:
                yield self._encode_fast(self._fast, text)
            return
        done: list[NDArray[np.int32]] = []
        for batch in _batches(texts, self._prepends_space):
            encodings = self._backend.encode_batch_fast([piece for piece, _ in batch], add_special_tokens=False)
            for (_, is_last), encoding in zip(batch, encodings, strict=True):
                done.append(np.asarray(encoding.ids, dtype=np.int32))
                if is_last:
                    yield np.concatenate(done)
                    done = []

    def _encode_fast(self, fast: FastBpe, text: str) -> NDArray[np.int32]:
        encoded = [fast.encode(piece) for piece in split_text(text)]
        ids = [part for part in encoded if part is not None]
        if len(ids) < len(encoded):
            return next(self.without_fast_path().encode_documents([text]))
        return ids[0] if len(ids) == 1 else np.concatenate(ids)

    def decode(self, ids: Iterable[int], *, drop_eod_and_pad: bool = False) -> str:
        """Text of the ids; special tokens show as their names unless the end-of-document and pad ids are dropped."""
        dropped = {self.eod_id, self.pad_id} if drop_eod_and_pad else set()
        return self._backend.decode([int(i) for i in ids if int(i) not in dropped], skip_special_tokens=False)


def _prepends_space(file: Path) -> bool:
    definition = json.loads(file.read_text(encoding="utf-8"))
    normalizer, words = definition.get("normalizer") or {}, definition.get("pre_tokenizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    prepends = any(step.get("type") == "Prepend" for step in steps)
    return prepends or (words.get("type") == "Metaspace" and words.get("prepend_scheme", "always") != "never")


def _pieces(texts: Iterable[str], prepends_space: bool) -> Iterator[tuple[str, bool]]:
    """Pieces of the texts, each with whether it is the last of its text."""
    for text in texts:
        previous: str | None = None
        for piece in split_text(text):
            if previous is not None:
                yield previous, False
                # The tokenizer puts the space back that a piece begins with.
                piece = piece.removeprefix(" ") if prepends_space else piece
            previous = piece
        if previous is not None:
            yield previous, True


def _batches(texts: Iterable[str], prepends_space: bool) -> Iterator[list[tuple[str, bool]]]:
    batch: list[tuple[str, bool]] = []
    characters = 0
    for piece, is_last in _pieces(texts, prepends_space):
        batch.append((piece, is_last))
        characters += len(piece)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
