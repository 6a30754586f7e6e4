"""Text to ids in several ways, each a function that prepares one."""

import json
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from calm_megatron.data.documents import DocumentReader
from calm_megatron.data.preprocess import PreprocessOptions, preprocess
from calm_megatron.data.sources import find_sources
from calm_megatron.data.tokenizer import Tokenizer


def ours(jsonl: Path, tokenizer: Path, prefix: Path, workers: int) -> Callable[[], object]:
    """The whole of `tools/preprocess_data.py`."""

    def run() -> None:
        reader = DocumentReader(find_sources([jsonl]))
        preprocess(reader, Tokenizer.load(tokenizer), prefix, PreprocessOptions(workers=workers, overwrite=True))

    return run


_of_worker: list[Any] = []
"""Tokenizer of a worker process of Megatron's way."""


def _start(tokenizer: Path) -> None:
    from transformers import PreTrainedTokenizerFast  # a development requirement, and slow to import

    loaded: Any = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer / "tokenizer.json"))  # type: ignore[no-untyped-call]
    _of_worker.append((loaded, Tokenizer.load(tokenizer).eod_id))


def _encode(line: str) -> tuple[list[int], int]:
    loaded, eod_id = _of_worker[0]
    text = json.loads(line)["text"]
    return [*loaded(text, add_special_tokens=False).input_ids, eod_id], len(line)


def megatron(jsonl: Path, tokenizer: Path, prefix: Path) -> Callable[[], object]:
    """Megatron-LM's `tools/preprocess_data.py` with one worker, step for step.

    Lines go one by one through a pool, each is parsed, encoded by Hugging Face's tokenizer, and sent back as a list,
    which megatron-core's builder writes.
    """
    # Imported here: the other ways need none of it.
    import numpy as np
    import transformers  # noqa: F401 - so that the forked worker finds it imported
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    def run() -> None:
        builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
        with (
            open(jsonl, encoding="utf-8") as lines,
            get_context("fork").Pool(1, initializer=_start, initargs=(tokenizer,)) as pool,
        ):
            for ids, _ in pool.imap(_encode, lines, 32):
                builder.add_document(ids, [len(ids)])
            pool.close()
            pool.join()
        builder.finalize(f"{prefix}.idx")

    return run


def encode_batch(jsonl: Path, tokenizer: Path) -> Callable[[], object]:
    """`tokenizers` alone, in batches of 1,000 documents, with the ids thrown away."""
    # Imported here: the other ways do not need it.
    import tokenizers

    loaded = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))

    def run() -> None:
        batch: list[str] = []
        with open(jsonl, encoding="utf-8") as lines:
            for line in lines:
                batch.append(json.loads(line)["text"])
                if len(batch) == 1000:
                    loaded.encode_batch_fast(batch, add_special_tokens=False)
                    batch = []
        loaded.encode_batch_fast(batch, add_special_tokens=False)

    return run
