"""The proof at length: a whole corpus, byte for byte what megatron-core makes of Hugging Face's ids.

`CALM_CORPUS` names a corpus of JSONL, perhaps compressed; `CALM_LLAMA3` Meta's `tokenizer.model`, which is not ours to
pass on.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from calm_megatron.data.documents import DocumentReader
from calm_megatron.data.import_tokenizer import import_tokenizer
from calm_megatron.data.index_file import dtype_of_ids
from calm_megatron.data.preprocess import PreprocessOptions, preprocess
from calm_megatron.data.sources import find_sources
from calm_megatron.data.tokenizer import Tokenizer
from calm_megatron.data.train_tokenizer import train_tokenizer

pytestmark = pytest.mark.slow
BATCH = 200


def digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def by_megatron(reader: DocumentReader, tokenizer: Tokenizer, prefix: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(tokenizer.path / "tokenizer.json"))
    backend.encode_special_tokens = True
    dtype = dtype_of_ids(tokenizer.vocab_size).type
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    batch: list[str] = []

    def write() -> None:
        for encoding in backend.encode_batch_fast(batch, add_special_tokens=False):
            ids = np.array([*encoding.ids, tokenizer.eod_id], dtype=dtype)
            builder.add_document(ids, [len(ids)])
        batch.clear()

    for text in reader:
        batch.append(text)
        if len(batch) == BATCH:
            write()
    write()
    builder.finalize(f"{prefix}.idx")


@pytest.mark.parametrize("kind", ["own", "llama3"])
def test_whole_corpus_is_megatrons(kind: str, tmp_path: Path) -> None:
    if not os.environ.get("CALM_CORPUS"):
        pytest.skip("set CALM_CORPUS to a corpus of JSONL")
    sources = find_sources([os.environ["CALM_CORPUS"]])
    if kind == "own":
        train_tokenizer(DocumentReader(sources), tmp_path / "tokenizer", 32_000, keep_every=6)
    elif not os.environ.get("CALM_LLAMA3"):
        pytest.skip("set CALM_LLAMA3 to Meta's tokenizer.model")
    else:
        import_tokenizer(Path(os.environ["CALM_LLAMA3"]), tmp_path / "tokenizer")
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    report = preprocess(DocumentReader(sources), tokenizer, tmp_path / "ours", PreprocessOptions(workers=2))
    assert report.fast_path
    by_megatron(DocumentReader(sources), tokenizer, tmp_path / "megatron")
    for ending in (".bin", ".idx"):
        assert digest(tmp_path / f"ours{ending}") == digest(tmp_path / f"megatron{ending}")
