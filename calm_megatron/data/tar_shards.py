"""Data sets as tar files, for training from what is no file system: written here, read by `shard_sequences`.

Each document is a sample as webdataset knows it: `000000042.npy` holds its ids and the end-of-document id, and
`000000042.json` where it comes from. `shards.json` lists the shards with what must be known of them beforehand: how
many documents and tokens they hold, with and without fill, and a checksum of their ids.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
import xxhash
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from calm_megatron.config.atomic import write_atomically
from calm_megatron.config.errors import UserError
from calm_megatron.data.documents import DocumentReader
from calm_megatron.data.files import make_parent, publish, temporary_name
from calm_megatron.data.fit import prove_fast_path
from calm_megatron.data.index_file import dtype_of_ids
from calm_megatron.data.indexed import IndexedCorpus
from calm_megatron.data.meaning import Meaning
from calm_megatron.data.permutation import KeyedOrder
from calm_megatron.data.sequences import filled
from calm_megatron.data.tokenizer import Tokenizer

MANIFEST = "shards.json"
LARGEST_PATCH = 64
_PROVEN_ON = 50
_FORMAT = "calm_megatron shards 1"
Document = tuple[NDArray[np.integer[Any]], dict[str, Any]]
"""Ids with their end, and what is noted of them."""


@dataclass(frozen=True)
class ShardFacts:
    """What is known of a shard before it is read."""

    name: str
    bytes: int
    documents: int
    tokens: int
    filled_tokens: tuple[int, ...]
    """With the pads that fill documents up to whole patches of 1, 2, 3, ... tokens."""
    xxh3: str
    """Checksum of all ids in their order, as the bytes of their type."""


@dataclass(frozen=True)
class ShardManifest:
    """What is known of all shards."""

    format: str
    dtype: str
    tokenizer_fingerprint: str
    vocab_size: int
    eod_id: int
    pad_id: int
    shards: tuple[ShardFacts, ...]

    @property
    def meaning(self) -> Meaning:
        """What the ids mean."""
        return Meaning(self.tokenizer_fingerprint, self.vocab_size, self.eod_id, self.pad_id)


def read_manifest(content: bytes, where: str) -> ShardManifest:
    """A manifest from its bytes.

    Raises:
        UserError: it is damaged, of another version, or lists nothing.
    """
    again = "make the shards again with tools/make_shards.py"
    try:
        manifest = TypeAdapter(ShardManifest).validate_json(content)
    except ValidationError as error:
        raise UserError(f"the list of shards is damaged: {error.errors()[0]['msg']}", where, again) from None
    if manifest.format != _FORMAT or not manifest.shards:
        raise UserError(f'the list of shards is empty or of another version, "{manifest.format}"', where, again)
    return manifest


def corpus_documents(corpus: IndexedCorpus, seed: int) -> Iterator[Document]:
    """Documents of a data set in a shuffled order, since a shard should be like the whole."""
    order = KeyedOrder(len(corpus.lengths_D), seed)
    for place in range(len(corpus.lengths_D)):
        number = order[place]
        yield corpus.document(number), {"data_set": corpus.prefix.name, "document": number}


def text_documents(reader: DocumentReader, tokenizer: Tokenizer) -> Iterator[Document]:
    """Documents of files of text, in their order, encoded here and now by one process."""
    texts = iter(reader)
    first = list(islice(texts, _PROVEN_ON))
    tokenizer = prove_fast_path(tokenizer, first)
    for number, ids in enumerate(tokenizer.encode_documents(chain(first, texts))):
        yield np.append(ids, np.int32(tokenizer.eod_id)), {"document": number}


def make_shards(
    documents: Iterable[Document], meaning: Meaning, folder: Path, shard_bytes: int, *, overwrite: bool = False
) -> ShardManifest:
    """Write documents as tar files of about `shard_bytes` into `folder`, the list of them last.

    Raises:
        UserError: there are shards already, there is no document, or the folder cannot be written.
    """
    if (folder / MANIFEST).exists() and not overwrite:
        raise UserError("there are shards already", str(folder), "choose another folder, or replace with --overwrite")
    make_parent(folder / MANIFEST)
    (folder / MANIFEST).unlink(missing_ok=True)
    dtype, shards, waiting, size = dtype_of_ids(meaning.vocab_size), list[ShardFacts](), list[Document](), 0
    first = 0
    for ids, noted in documents:
        waiting.append((ids.astype(dtype), noted))
        size += _tar_bytes(ids.size * dtype.itemsize)
        if size >= shard_bytes:
            shards.append(_write_shard(folder, len(shards), first, waiting))
            first, waiting, size = first + len(waiting), [], 0
    if waiting:
        shards.append(_write_shard(folder, len(shards), first, waiting))
    if not shards:
        raise UserError("there is no document to put into shards", str(folder), "give a data set with documents")
    manifest = ShardManifest(_FORMAT, dtype.name, *meaning, tuple(shards))
    write_atomically(folder / MANIFEST, (json.dumps(asdict(manifest)) + "\n").encode())
    return manifest


def _tar_bytes(ids_bytes: int) -> int:
    """Roughly what a document takes in a tar file: two headers, its ids in an .npy, and its note, in units of 512."""
    return 2 * 512 + -(-(ids_bytes + 128) // 512) * 512 + 512


def _write_shard(folder: Path, number: int, first: int, documents: list[Document]) -> ShardFacts:
    path = folder / f"shard-{number:06d}.tar"
    temporary, digest = temporary_name(path), xxhash.xxh3_128()
    try:
        # A fixed time and owner: the same documents give the same bytes.
        with (
            open(temporary, "wb") as stream,
            webdataset.TarWriter(stream, user="calm", group="calm", mode=0o644, mtime=0) as tar,
        ):
            for place, (ids, noted) in enumerate(documents):
                tar.write({"__key__": f"{first + place:09d}", "npy": ids, "json": noted})
                digest.update(np.ascontiguousarray(ids).data)
        publish(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write the shard: {error.strerror or error}", str(path)) from None
    lengths = np.array([ids.size for ids, _ in documents], dtype=np.int64)
    return ShardFacts(
        name=path.name,
        bytes=os.path.getsize(path),
        documents=len(documents),
        tokens=int(lengths.sum()),
        filled_tokens=tuple(int(filled(lengths, unit).sum()) for unit in range(1, LARGEST_PATCH + 1)),
        xxh3=digest.hexdigest(),
    )
