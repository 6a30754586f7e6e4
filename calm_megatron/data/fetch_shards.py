"""Shards and their list from where they lie: a folder, a URL, a command; whatever webdataset opens.

A place is a folder (`data/shards`), or a text with `{}` for the name of the file: `http://host/shards/{}`,
`pipe:ssh host cat /data/shards/{}`. http and https are fetched by `curl`, as webdataset does.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import webdataset
import xxhash
from numpy.typing import NDArray
from webdataset.gopen import gopen

from calm_megatron.config.errors import UserError
from calm_megatron.data.tar_shards import MANIFEST, ShardFacts, ShardManifest, read_manifest

_ATTEMPTS = 4
_FIRST_PAUSE_SECONDS = 0.5
Fetched = TypeVar("Fetched")


def url_of(place: str, name: str) -> str:
    """Where the file of this name lies."""
    return place.replace("{}", name) if "{}" in place else str(Path(place) / name)


def fetch_manifest(place: str) -> ShardManifest:
    """The list of the shards at `place`.

    Raises:
        UserError: it cannot be fetched or is damaged.
    """
    url = url_of(place, MANIFEST)

    def read() -> bytes:
        with gopen(url, "rb") as stream:
            content: bytes = stream.read()
        return content

    return read_manifest(_patiently(read, url), url)


def fetch_shard(place: str, facts: ShardFacts, dtype: np.dtype[Any]) -> list[NDArray[np.integer[Any]]]:
    """The documents of a shard, checked against what the list says of it.

    Raises:
        UserError: it cannot be fetched, or is not the one that was written.
    """
    url = url_of(place, facts.name)

    def read() -> list[NDArray[np.integer[Any]]]:
        samples = webdataset.DataPipeline(
            webdataset.SimpleShardList([url]), webdataset.tarfile_to_samples(), webdataset.decode()
        )
        documents = [sample["npy"] for sample in samples]
        digest = xxhash.xxh3_128()
        for ids in documents:
            digest.update(np.ascontiguousarray(ids, dtype=dtype).data)
        if digest.hexdigest() != facts.xxh3:
            found = sum(len(ids) for ids in documents)
            raise ValueError(
                f"it holds {len(documents):,} documents and {found:,} tokens, {facts.documents:,} and "
                f"{facts.tokens:,} were written, or other ids"
            )
        return documents

    try:
        return _patiently(read, url)
    except UserError as error:
        raise ShardLost(error.what, error.where, error.what_to_do) from None


class ShardLost(UserError):
    """A shard that is on the list cannot be fetched now; another start may do better."""

    exit_code = 1


def _patiently(read: Callable[[], Fetched], url: str) -> Fetched:
    """Read, after an error a few times again: over a network most of them pass."""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
        try:
            return read()
        except Exception as error:  # webdataset, curl and tarfile raise whatever they like
            last = error
    what = str(last).splitlines()[0] if str(last) else type(last).__name__
    raise UserError(
        f"a shard or the list of shards cannot be fetched: {what}",
        url,
        "check data.train_shards, and that the file is there and whole",
    ) from None
