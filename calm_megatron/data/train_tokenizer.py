"""A byte-level BPE of one's own, trained from text.

The special tokens get the last ids, so that id 0 is an ordinary byte: the autoencoder's token dropout replaces tokens
by id 0 (official code, `modeling_autoencoder.py`), which must be neither the end of a document nor padding.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from calm_megatron.config.atomic import write_atomically
from calm_megatron.config.errors import UserError
from calm_megatron.data.files import make_parent
from calm_megatron.data.pieces import split_text
from calm_megatron.data.tokenizer import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE

EOD_TOKEN = "<|endoftext|>"
PAD_TOKEN = "<|pad|>"
_BYTES = 256
_SPECIAL_TOKENS = 2
SMALLEST_VOCABULARY = _BYTES + _SPECIAL_TOKENS


@dataclass(frozen=True)
class TrainedTokenizer:
    """What came of a training."""

    path: Path
    vocab_size: int
    """All ids: bytes, merges and the two special tokens."""
    requested_vocab_size: int
    """Larger than `vocab_size` when the text holds too few pairs to merge."""


def _learn(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - _SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces: Iterator[str] = (piece for text in texts for piece in split_text(text))
    tokenizer.train_from_iterator(pieces, trainer)
    tokenizer.add_special_tokens([EOD_TOKEN, PAD_TOKEN])
    return tokenizer


def train_tokenizer(
    texts: Iterable[str], output: Path, vocab_size: int, *, keep_every: int = 1, overwrite: bool = False
) -> TrainedTokenizer:
    """Train a byte-level BPE and write `tokenizer.json` and `tokenizer_config.json` into the folder `output`.

    Args:
        texts: the documents, of any length; a `DocumentReader` refuses an empty corpus by itself.
        output: folder to write, made if needed.
        vocab_size: all ids, with the 256 bytes and the 2 special tokens.
        keep_every: learn from every n-th document only, for corpora larger than learning needs.
        overwrite: replace a tokenizer that is there.

    Raises:
        UserError: the size is too small, or `output` holds a tokenizer already.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise UserError(
            f"a byte-level vocabulary of {vocab_size} is too small",
            "--vocab-size",
            f"at least {SMALLEST_VOCABULARY} are needed: {_BYTES} bytes and {_SPECIAL_TOKENS} special tokens",
        )
    if keep_every < 1:
        raise UserError(f"every {keep_every}-th document is none", "--keep-every", "give 1 or more")
    file = output / TOKENIZER_FILE
    if file.exists() and not overwrite:
        raise UserError(
            "there is a tokenizer already; data sets made with it need it unchanged",
            str(file),
            "choose another folder, or replace it with --overwrite",
        )
    make_parent(file)
    tokenizer = _learn(islice(texts, 0, None, keep_every), vocab_size)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOD_TOKEN,
        "pad_token": PAD_TOKEN,
        "clean_up_tokenization_spaces": False,
    }
    write_atomically(output / TOKENIZER_CONFIG_FILE, (json.dumps(settings, indent=2) + "\n").encode())
    write_atomically(file, (tokenizer.to_str(pretty=True) + "\n").encode())
    return TrainedTokenizer(output, tokenizer.get_vocab_size(with_added_tokens=True), vocab_size)
