"""Text for benchmarks of the data: 60 MB or more as JSONL and a BPE of 32,000 entries trained on it.

`CALM_CORPUS=file` names a corpus of JSONL, perhaps compressed, whose beginning is taken; without it, the text is
the source code and documentation of the packages that are installed here.
"""

import json
import os
import site
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.saved import on_disk
from calm_megatron.data.documents import DocumentReader
from calm_megatron.data.sources import find_sources
from calm_megatron.data.tokenizer import Tokenizer
from calm_megatron.data.train_tokenizer import train_tokenizer

_BYTES = 60_000_000
_VOCABULARY = 32_000
_ENDINGS = (".py", ".md", ".rst", ".txt")


@dataclass(frozen=True)
class Texts:
    """Where they are."""

    folder: Path
    jsonl: Path
    tokenizer: Path
    bytes: int


def _documents() -> Iterator[str]:
    named = os.environ.get("CALM_CORPUS")
    if named:
        yield from DocumentReader(find_sources([named]))
        return
    for root in site.getsitepackages():
        for path in sorted(Path(root).rglob("*")):
            if path.suffix in _ENDINGS and path.is_file():
                text = path.read_text(encoding="utf-8", errors="ignore")
                if text.strip():
                    yield text


@contextmanager
def texts(size: int = _BYTES) -> Iterator[Texts]:
    """About so many bytes of text and their tokenizer, in a folder that goes away."""
    with on_disk() as folder:
        taken, jsonl = 0, folder / "texts.jsonl"
        with open(jsonl, "w", encoding="utf-8") as stream:
            for text in _documents():
                stream.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                taken += len(text.encode())
                if taken >= size:
                    break
        train_tokenizer(DocumentReader(find_sources([jsonl])), folder / "tokenizer", _VOCABULARY, keep_every=8)
        assert Tokenizer.load(folder / "tokenizer").with_fast_path().is_fast
        yield Texts(folder, jsonl, folder / "tokenizer", taken)
