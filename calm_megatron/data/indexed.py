"""Data sets on disk: megatron-core's `.bin` and `.idx`, and our side file (`corpus_facts`).

One document is one sequence: its ids and the end-of-document id, without padding, so that one data set serves
every patch size.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calm_megatron.config.errors import UserError
from calm_megatron.data.corpus_facts import CorpusFacts, bin_file, facts_file, idx_file, read_facts, write_facts
from calm_megatron.data.files import make_parent, publish, temporary_name
from calm_megatron.data.index_file import LARGEST_DOCUMENT, IndexFile, dtype_of_ids, write_index
from calm_megatron.data.prefixes import refuse_existing

_AGAIN = "copy the data set again or make it again with tools/preprocess_data.py"
_IDS_AT_A_TIME = 1 << 22


class WrittenFacts(TypedDict):
    """Fields of `CorpusFacts` that follow from the ids."""

    documents: int
    tokens: int
    dtype: str
    bin_bytes: int
    bin_sha256: str


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
        if not overwrite:
            refuse_existing(prefix)
        make_parent(bin_file(prefix))
        self.documents = 0
        self.tokens = 0
        self._prefix, self._eod_id = prefix, eod_id
        self._bin, self._idx = temporary_name(bin_file(prefix)), temporary_name(idx_file(prefix))
        self._hash = hashlib.sha256()
        self._dtype = dtype_of_ids(vocab_size)
        self._lengths: list[NDArray[np.int32]] = []
        try:
            self._stream = open(self._bin, "wb")  # noqa: SIM115 - closed by __exit__ and publish
        except OSError as error:
            raise UserError(f"cannot write the data set: {error.strerror}", str(self._bin)) from None

    def __enter__(self) -> "IndexedWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # A full disk fails here once more.
            self._stream.close()
        self._bin.unlink(missing_ok=True)
        self._idx.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"cannot write the data set: {error.strerror or error}", str(self._prefix)) from None

    @property
    def dtype(self) -> str:
        """numpy's name of the type of the ids."""
        return self._dtype.name

    @property
    def lengths(self) -> Sequence[NDArray[np.int32]]:
        """Tokens of each document so far, in chunks."""
        return self._lengths

    def counts(self) -> WrittenFacts:
        """What the side file says of the ids written so far."""
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "dtype": self._dtype.name,
            "bin_bytes": self.tokens * self._dtype.itemsize,
            "bin_sha256": self._hash.hexdigest(),
        }

    def add(self, ids: ArrayLike) -> None:
        """Append one document; the end-of-document id is added here.

        Raises:
            UserError: it is longer than the format can say.
        """
        document = np.append(np.asarray(ids), self._eod_id)
        if document.size > LARGEST_DOCUMENT:
            raise UserError(
                f"document {self.documents} has {document.size:,} tokens, more than the format can hold",
                str(self._prefix),
                "cut the document; for text files, --document-separator does",
            )
        self.add_encoded(document.astype(self._dtype), np.array([document.size], dtype=np.int32))

    def add_encoded(self, ids: NDArray[np.integer[Any]], lengths: NDArray[np.int32]) -> None:
        """Append several documents, whose ends are in place already; the ids are of the data set's type.

        Ids may also come in parts, the later ones with no lengths.
        """
        content = np.ascontiguousarray(ids, dtype=self._dtype).data.cast("B")
        self._stream.write(content)
        self._hash.update(content)
        self._lengths.append(lengths)
        self.documents += len(lengths)
        self.tokens += len(ids)

    def publish(self, facts: CorpusFacts) -> None:
        """Close the files and give them their final names, the index last: without it there is no data set."""
        self._stream.close()
        with open(self._idx, "wb") as index:
            write_index(index, self._dtype, self._lengths, self.documents)
        idx_file(self._prefix).unlink(missing_ok=True)
        publish(self._bin, bin_file(self._prefix))
        write_facts(self._prefix, facts)
        publish(self._idx, idx_file(self._prefix))


class IndexedCorpus:
    """A data set opened for reading, memory-mapped and never copied whole."""

    def __init__(self, prefix: Path, facts: CorpusFacts, index: IndexFile) -> None:
        self.prefix = prefix
        self.facts = facts
        self.lengths_D: NDArray[np.int32] = index.lengths_D
        """Tokens of each document, with its end-of-document id."""
        self._offsets_D = index.offsets_D
        self._itemsize = index.dtype.itemsize
        # A plain view: a memmap's slices carry its bookkeeping along, which takes longer than reading.
        self._ids: NDArray[np.integer[Any]] = np.asarray(np.memmap(bin_file(prefix), dtype=index.dtype, mode="r"))

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
        index = IndexFile.open(idx_file(prefix))
        found = bin_file(prefix).stat().st_size
        if found != facts.bin_bytes:
            how = "cut" if found < facts.bin_bytes else "too long"
            raise UserError(
                f"the file of ids is {how}: {found:,} bytes, {facts.bin_bytes:,} expected",
                str(bin_file(prefix)),
                _AGAIN,
            )
        tokens = sum(int(chunk.sum(dtype=np.int64)) for chunk in index.chunks())
        of_index = (len(index.lengths_D), tokens, index.dtype.name)
        of_facts = (facts.documents, facts.tokens, facts.dtype)
        if of_index != of_facts:
            raise UserError(
                "the index and the side file are of different data sets: "
                f"documents, tokens and type are {of_index} and {of_facts}",
                f"{idx_file(prefix)} and {facts_file(prefix)}",
                _AGAIN,
            )
        return cls(prefix, facts, index)

    def document(self, number: int) -> NDArray[np.integer[Any]]:
        """Ids of a document: a view of the mapped file."""
        first = int(self._offsets_D[number]) // self._itemsize
        return self._ids[first : first + int(self.lengths_D[number])]

    def documents(self, numbers: NDArray[np.int64]) -> list[NDArray[np.integer[Any]]]:
        """Ids of several documents: views of the mapped file."""
        firsts = self._offsets_D[numbers] // self._itemsize
        ends = firsts + self.lengths_D[numbers]
        return [self._ids[first:end] for first, end in zip(firsts.tolist(), ends.tolist(), strict=True)]

    def read(self, document: int, start: int, stop: int) -> NDArray[np.integer[Any]]:
        """Ids `start` to `stop` of a document: a view of the mapped file."""
        first = int(self._offsets_D[document]) // self._itemsize
        return self._ids[first + start : first + stop]

    def parts(self) -> Iterator[NDArray[np.integer[Any]]]:
        """All ids in their order, some millions at a time."""
        for first in range(0, len(self._ids), _IDS_AT_A_TIME):
            yield self._ids[first : first + _IDS_AT_A_TIME]

    def verify(self) -> None:
        """Read all ids, compare their SHA-256 with the one written down, and look that the vocabulary holds them.

        Raises:
            UserError: they are not the ids that were written, or outside of the vocabulary, or the index does not
                say where documents end.
        """
        digest, largest = hashlib.sha256(), -1
        for ids in self.parts():
            digest.update(ids.data.cast("B"))
            largest = max(largest, int(ids.max()))
        if digest.hexdigest() != self.facts.bin_sha256:
            raise UserError("the ids are not the ones that were written", str(bin_file(self.prefix)), _AGAIN)
        if largest >= self.facts.vocab_size:
            raise UserError(
                f"id {largest} is outside of the vocabulary of {self.facts.vocab_size:,}", str(bin_file(self.prefix))
            )
        ends = self._offsets_D[:] // self._itemsize + self.lengths_D - 1
        if not (self._ids[ends] == self.facts.eod_id).all() or int(ends[-1]) != self.facts.tokens - 1:
            raise UserError("the index does not say where documents end", str(idx_file(self.prefix)), _AGAIN)
