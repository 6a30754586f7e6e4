"""Real text for the data tests: the Python documentation that comes with the interpreter, and a data set made of it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest

from calm_megatron.data.documents import DocumentReader
from calm_megatron.data.indexed import IndexedCorpus
from calm_megatron.data.preprocess import preprocess
from calm_megatron.data.sources import find_sources
from calm_megatron.data.tokenizer import Tokenizer
from calm_megatron.data.train_tokenizer import train_tokenizer

ROOT = Path(__file__).resolve().parents[2]
VOCAB_SIZE = 600


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """More than a thousand documents, short and long: the topics of Python's `help()`, half of them by paragraph."""
    documents: list[str] = []
    for number, text in enumerate(topics.values()):
        documents += [text] if number % 2 else [part for part in text.split("\n\n") if part.strip()]
    return [text for text in documents if len(text) < 20_000]


@pytest.fixture(scope="session")
def jsonl(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documents, one a line."""
    path = tmp_path_factory.mktemp("jsonl") / "help.jsonl"
    path.write_text("".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts)))
    return path


@pytest.fixture(scope="session")
def tokenizer_dir(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of 600 entries trained on the documents."""
    folder = tmp_path_factory.mktemp("data") / "tokenizer"
    train_tokenizer(texts, folder, VOCAB_SIZE)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir: Path) -> Tokenizer:
    """The same, loaded."""
    return Tokenizer.load(tokenizer_dir)


@pytest.fixture(scope="session")
def prefix(jsonl: Path, tokenizer: Tokenizer, tokenizer_dir: Path) -> Path:
    """Prefix of a data set of all documents."""
    prefix = tokenizer_dir.parent / "help"
    preprocess(DocumentReader(find_sources([jsonl])), tokenizer, prefix)
    return prefix


@pytest.fixture(scope="session")
def corpus(prefix: Path) -> IndexedCorpus:
    """The same, opened."""
    return IndexedCorpus.open(prefix)


@pytest.fixture(scope="session")
def documents(texts: list[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Ids of each document with its end-of-document id, straight from the tokenizer."""
    return [np.array([*ids, tokenizer.eod_id]) for ids in tokenizer.encode_batch(texts)]


@pytest.fixture(scope="session")
def run_tool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a program of `tools/` in a process of its own."""

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "tools" / name), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    return run
