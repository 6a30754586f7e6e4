"""Data sets on disk: megatron-core's `.bin` and `.idx`, and our side file (`corpus_facts`).

One document is one sequence: its ids and the end-of-document id, without padding, so that one data set serves
every patch size.
"""

import hashlib
import struct
import warnings
from contextlib import suppress
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calm_megatron.config.errors import UserError
from calm_megatron.data.corpus_facts import CorpusFacts, bin_file, facts_file, idx_file, read_facts, write_facts
from calm_megatron.data.files import make_parent, publish, temporary_name

_IDX_HEADER = struct.Struct("<9sQBQQ")
_IDX_MAGIC = b"MMIDIDX\x00\x00"
_LARGEST_DOCUMENT = np.iinfo(np.int32).max
_AGAIN = "copy the data set again or make it again with tools/preprocess_data.py"


def _megatron() -> ModuleType:
    """megatron-core's module, imported at first use: it takes seconds, and warns about GPU parts that are optional."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core.datasets import indexed_dataset
    return cast(ModuleType, indexed_dataset)


class IndexedWriter:
    """Writes a data set under temporary names and publishes it whole; leaving the `with` block otherwise removes all.

    Args:
        prefix: path of the data set without endings.
        vocab_size: decides the width of the ids: 16 bits below 65,500 entries, else 32.
        eod_id: id behind each document.
        overwrite: replace a data set that is there.

    Raises:
        UserError: there is one already, or the folder cannot be written.
    """

    def __init__(self, prefix: Path, *, vocab_size: int, eod_id: int, overwrite: bool = False) -> None:
        if idx_file(prefix).exists() and not overwrite:
            raise UserError(
                "there is a data set already",
                str(idx_file(prefix)),
                "choose another prefix, or replace it with --overwrite",
            )
        make_parent(bin_file(prefix))
        self.documents = 0
        self.tokens = 0
        self._prefix, self._eod_id = prefix, eod_id
        self._bin, self._idx = temporary_name(bin_file(prefix)), temporary_name(idx_file(prefix))
        self._hash = hashlib.sha256()
        megatron = _megatron()
        self._dtype: np.dtype[Any] = np.dtype(megatron.DType.optimal_dtype(vocab_size))
        try:
            self._builder = megatron.IndexedDatasetBuilder(str(self._bin), dtype=self._dtype.type)
        except OSError as error:
            raise UserError(f"cannot write the data set: {error.strerror}", str(self._bin)) from None

    def __enter__(self) -> "IndexedWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # A full disk fails here once more.
            self._builder.data_file.close()
        self._bin.unlink(missing_ok=True)
        self._idx.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"cannot write the data set: {error.strerror or error}", str(self._prefix)) from None

    @property
    def dtype(self) -> str:
        """numpy's name of the type of the ids."""
        return self._dtype.name

    @property
    def bin_sha256(self) -> str:
        """SHA-256 of the ids written so far."""
        return self._hash.hexdigest()

    @property
    def bin_bytes(self) -> int:
        """Bytes of the ids written so far."""
        return self.tokens * self._dtype.itemsize

    def add(self, ids: ArrayLike) -> None:
        """Append one document; the end-of-document id is added here.

        Raises:
            UserError: it is longer than the format can say.
        """
        document = np.append(np.asarray(ids), self._eod_id).astype(self._dtype)
        if document.size > _LARGEST_DOCUMENT:
            raise UserError(
                f"document {self.documents} has {document.size:,} tokens, more than the format can hold",
                str(self._prefix),
                "cut the document; for text files, --document-separator does",
            )
        self._builder.add_document(document, [document.size])
        self._hash.update(document.tobytes())
        self.documents += 1
        self.tokens += document.size

    def publish(self, facts: CorpusFacts) -> None:
        """Close the files and give them their final names, the index last: without it there is no data set."""
        self._builder.finalize(str(self._idx))
        idx_file(self._prefix).unlink(missing_ok=True)
        publish(self._bin, bin_file(self._prefix))
        write_facts(self._prefix, facts)
        publish(self._idx, idx_file(self._prefix))


def _check_index(prefix: Path) -> tuple[int, int]:
    """Documents and dtype code of an index file, after checking that it is one and whole."""
    file = idx_file(prefix)
    size = file.stat().st_size
    with open(file, "rb") as stream:
        header = stream.read(_IDX_HEADER.size)
    if len(header) < _IDX_HEADER.size or not header.startswith(_IDX_MAGIC):
        raise UserError("not a megatron-core index file", str(file), _AGAIN)
    _, version, code, sequences, boundaries = _IDX_HEADER.unpack(header)
    if version != 1:
        raise UserError(f"the index file is of version {version}; only 1 is known", str(file), _AGAIN)
    expected = _IDX_HEADER.size + 12 * sequences + 8 * boundaries
    if size != expected:
        raise UserError(f"the index file is cut: {size:,} bytes, {expected:,} expected", str(file), _AGAIN)
    if boundaries != sequences + 1:
        raise UserError("documents of several sequences are not supported", str(file), _AGAIN)
    return sequences, code


class IndexedCorpus:
    """A data set opened for reading through megatron-core's `IndexedDataset`, memory-mapped and never copied whole."""

    def __init__(self, prefix: Path, facts: CorpusFacts, dataset: Any) -> None:
        self.prefix = prefix
        self.facts = facts
        self._dataset = dataset
        self.lengths_D: NDArray[np.int64] = np.asarray(dataset.sequence_lengths, dtype=np.int64)
        """Tokens of each document, with its end-of-document id."""

    @classmethod
    def open(cls, prefix: str | Path) -> "IndexedCorpus":
        """Open the data set at `prefix`, the path without endings.

        The files are checked against each other; that the ids are the written ones is checked by `verify` only.

        Raises:
            UserError: a file is missing, cut, damaged or of another data set.
        """
        prefix = Path(prefix)
        for file in (idx_file(prefix), bin_file(prefix)):
            if not file.is_file():
                hint = " (give the path without .bin or .idx)" if prefix.suffix in (".bin", ".idx") else ""
                raise UserError(f"the data set is not there{hint}", str(file), "make it with tools/preprocess_data.py")
        facts = read_facts(prefix)
        documents, code = _check_index(prefix)
        found = bin_file(prefix).stat().st_size
        if found != facts.bin_bytes:
            how = "cut" if found < facts.bin_bytes else "too long"
            raise UserError(
                f"the file of ids is {how}: {found:,} bytes, {facts.bin_bytes:,} expected",
                str(bin_file(prefix)),
                _AGAIN,
            )
        megatron = _megatron()
        corpus = cls(prefix, facts, megatron.IndexedDataset(str(prefix)))
        of_index = (documents, int(corpus.lengths_D.sum()), megatron.DType(code).name)
        of_facts = (facts.documents, facts.tokens, facts.dtype)
        if of_index != of_facts:
            raise UserError(
                "the index and the side file are of different data sets: "
                f"documents, tokens and type are {of_index} and {of_facts}",
                f"{idx_file(prefix)} and {facts_file(prefix)}",
                _AGAIN,
            )
        return corpus

    def read(self, document: int, start: int, stop: int) -> NDArray[np.integer[Any]]:
        """Ids `start` to `stop` of a document: a view of the mapped file, valid only while the corpus lives."""
        return cast(NDArray[np.integer[Any]], self._dataset.get(document, start, stop - start))

    def verify(self) -> None:
        """Read all ids and compare their SHA-256 with the one written down.

        Raises:
            UserError: they are not the ids that were written.
        """
        with open(bin_file(self.prefix), "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256")
        if digest.hexdigest() != self.facts.bin_sha256:
            raise UserError("the ids are not the ones that were written", str(bin_file(self.prefix)), _AGAIN)
