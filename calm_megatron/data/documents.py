"""Documents one after the other from files: JSONL, plain text or parquet; also compressed.

For the tools that read a corpus once and in order; `preprocess` divides it among processes (see `blocks`).
"""

from collections.abc import Iterator, Sequence
from typing import IO

from calm_megatron.data.records import (
    InvalidRecord,
    ReadOptions,
    Tally,
    empty_error,
    invalid_error,
    parquet_records,
    stream_records,
    valid_texts,
)
from calm_megatron.data.sources import Source
from calm_megatron.data.streams import open_stream


class DocumentReader:
    """The texts of all sources, in order, one at a time; iterate once.

    Documents without any visible character are left out and counted in `empty`.

    Args:
        sources: from `find_sources`.
        json_key: key of the text in each JSON object, and column of parquet files.
        document_separator: a line that separates the documents of a text file, white space around it ignored;
            the empty string stands for blank lines; none makes each text file one document.
        skip_invalid: leave invalid records out, counting them in `invalid_count`, instead of raising.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        json_key: str = "text",
        document_separator: str | None = None,
        skip_invalid: bool = False,
    ) -> None:
        self.sources = list(sources)
        self.options = ReadOptions(json_key=json_key, document_separator=document_separator, skip_invalid=skip_invalid)
        self._tally = Tally()
        self._finished_bytes = 0
        self._file: IO[bytes] | None = None

    @property
    def documents(self) -> int:
        """Texts given so far."""
        return self._tally.documents

    @property
    def empty(self) -> int:
        """Documents left out so far because there was nothing visible in them."""
        return self._tally.empty

    @property
    def text_bytes(self) -> int:
        """Bytes of the texts in UTF-8."""
        return self._tally.text_bytes

    @property
    def invalid_count(self) -> int:
        """Records that could not be used."""
        return self._tally.invalid_count

    @property
    def invalid(self) -> list[InvalidRecord]:
        """The first of them."""
        return self._tally.invalid

    @property
    def bytes_read(self) -> int:
        """Progress: bytes on disk read so far, of the sum of `Source.size`."""
        return self._finished_bytes + (self._file.tell() if self._file else 0)

    def __iter__(self) -> Iterator[str]:
        """Yield the texts.

        Raises:
            UserError: a file is unreadable; records are invalid and not to be skipped; there is no document at all.
        """
        for source in self.sources:
            tally = Tally()
            for text in self._texts(source, tally):
                self._tally.documents += 1
                self._tally.text_bytes += len(text.encode())
                yield text
            tally.documents = tally.text_bytes = 0
            self._tally.add(tally)
            if tally.invalid_count and not self.options.skip_invalid:
                raise invalid_error(source, tally)
            self._finished_bytes += source.size
        if not self.documents:
            raise empty_error(self.sources, self._tally)

    def _texts(self, source: Source, tally: Tally) -> Iterator[str]:
        if source.format == "parquet":
            records = parquet_records(source.path, self.options.json_key)
            yield from valid_texts(source, records, self.options, tally)
            return
        with open_stream(source.path) as (stream, file):
            self._file = file if file.seekable() else None  # A pipe has no place to tell.
            records = stream_records(source.format, stream, self.options)
            yield from valid_texts(source, records, self.options, tally)
            self._file = None
