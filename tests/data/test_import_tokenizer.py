"""Imported tokenizers give the ids of the libraries that their models were made for."""

import base64
import io
import json
from pathlib import Path

import pytest
import sentencepiece
import tiktoken

from calm_megatron.config.errors import UserError
from calm_megatron.data import fit
from calm_megatron.data.fast_bpe import byte_characters
from calm_megatron.data.import_tokenizer import LLAMA3_PATTERN, import_tokenizer
from calm_megatron.data.tokenizer import Tokenizer


def test_tiktoken_models(tokenizer: Tokenizer, texts: list[str], tmp_path: Path) -> None:
    table = byte_characters()
    definition = json.loads((tokenizer.path / "tokenizer.json").read_text())
    names = ["".join(merge) for merge in definition["model"]["merges"]]
    tokens = [bytes([byte]) for byte in range(256)] + [bytes(table[c] for c in name) for name in names]
    lines = [base64.b64encode(token) + f" {rank}\n".encode() for rank, token in enumerate(tokens)]
    (tmp_path / "tokenizer.model").write_bytes(b"".join(lines))
    imported = import_tokenizer(tmp_path / "tokenizer.model", tmp_path / "out")
    assert imported.vocab_size == len(tokens) + 256 + 1 and imported.eod_id == len(tokens) + 1
    ranks = {token: rank for rank, token in enumerate(tokens)}
    official = tiktoken.Encoding("test", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens={})
    some = texts[::10]
    assert imported.encode_batch(some) == [official.encode_ordinary(text) for text in some]
    assert imported.with_fast_path().is_fast and fit.same_ids(imported.with_fast_path(), some)


@pytest.fixture(scope="module")
def sentencepiece_model(texts: list[str]) -> bytes:
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts[:300] for line in text.splitlines() if line),
        model_writer=stream,
        vocab_size=800,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return stream.getvalue()


def test_sentencepiece_models(sentencepiece_model: bytes, texts: list[str], tmp_path: Path) -> None:
    (tmp_path / "sp.model").write_bytes(sentencepiece_model)
    imported = import_tokenizer(tmp_path / "sp.model", tmp_path / "out")
    official = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model)
    some = [*texts[::10], "Ünïcode ☃ and  two   spaces", " begins with one", "tab\tand\nline"]
    assert imported.encode_batch(some) == [official.encode(text) for text in some]
    assert fit.losses(imported, some) == ""
    long = " ".join(texts)[:250_000]
    assert imported.encode(long) == official.encode(long), "pieces of a long text get no spaces of their own"


def test_what_cannot_be_imported_is_refused(sentencepiece_model: bytes, texts: list[str], tmp_path: Path) -> None:
    (tmp_path / "none.model").write_bytes(b"\xff no model at all")
    with pytest.raises(UserError, match="neither a tiktoken file nor a SentencePiece model"):
        import_tokenizer(tmp_path / "none.model", tmp_path / "out")
    for count, missing in ((0, 256), (200, 56)):
        lines = [base64.b64encode(bytes([byte])) + f" {byte}\n".encode() for byte in range(count)]
        (tmp_path / "cut.model").write_bytes(b"".join(lines))
        with pytest.raises(UserError, match=f"empty or cut: {missing} of the 256 single bytes are not in it"):
            import_tokenizer(tmp_path / "cut.model", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts[:100]), model_writer=stream, vocab_size=300, model_type="unigram", minloglevel=2
    )
    (tmp_path / "unigram.model").write_bytes(stream.getvalue())
    with pytest.raises(UserError, match="not imported: it is no BPE, it normalizes texts, it removes spaces"):
        import_tokenizer(tmp_path / "unigram.model", tmp_path / "out")
