"""What a preprocessing made, for people, programs and tests."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calm_megatron.config.atomic import write_atomically
from calm_megatron.data.corpus_facts import CorpusFacts
from calm_megatron.data.records import InvalidRecord

_LISTED = 5
_POOR_BYTES_PER_TOKEN = 1.5


@dataclass(frozen=True, kw_only=True)
class PreprocessReport:
    """What was made."""

    prefixes: tuple[Path, ...]
    shards: tuple[CorpusFacts, ...]
    histogram: tuple[int, ...]
    """How many documents have 1, 2 to 3, 4 to 7, 8 to 15, ... tokens, their ends included."""
    seconds: float
    encoded_bytes: int
    """Text that was encoded now, not by a run before that was killed."""
    invalid: tuple[InvalidRecord, ...]
    """The first of the records that were left out."""
    lossy: str
    """What the tokenizer does not give back, when that was allowed; empty if it gives all back."""
    fast_path: bool
    """Whether tiktoken encoded."""

    @property
    def facts(self) -> CorpusFacts:
        """Of the only data set."""
        (facts,) = self.shards
        return facts

    def total(self, name: str) -> int:
        """Sum of a count over the shards."""
        return sum(getattr(facts, name) for facts in self.shards)

    def __str__(self) -> str:
        documents, tokens, text_bytes = (self.total(name) for name in ("documents", "tokens", "text_bytes"))
        files = len({source for facts in self.shards for source in facts.sources})
        first, per_token = self.shards[0], text_bytes / tokens
        last = "" if len(self.prefixes) == 1 else f" to {self.prefixes[-1].name}"
        lines = [
            f"data set   {self.prefixes[0]}{last}: .bin, .idx and .facts.json",
            f"documents  {documents:,} in {files:,} files; {self.total('empty_documents'):,} empty left out",
            f"text       {text_bytes / 1e6:,.2f} MB",
            f"tokens     {tokens:,} ({first.dtype}); {per_token:.2f} bytes of text each",
            f"lengths    {self._lengths()}",
            f"vocabulary {first.vocab_size:,}; end of document {first.eod_id}, pad {first.pad_id}",
            f"encoded    {self.encoded_bytes / 1e6:,.2f} MB in {self.seconds:.1f} s, "
            f"{self.encoded_bytes / 1e6 / self.seconds:.2f} MB/s, by {'tiktoken' if self.fast_path else 'tokenizers'}",
        ]
        if invalid := self.total("invalid_records"):
            lines.append(f"warning    {invalid:,} invalid records left out, among them:")
            lines += [f"           {bad.path}, line {bad.line}: {bad.reason}" for bad in self.invalid[:_LISTED]]
        if self.lossy:
            lines.append(f"warning    {self.lossy}")
        if per_token < _POOR_BYTES_PER_TOKEN:
            lines.append("warning    the tokenizer hardly compresses this text; it was probably trained on other text")
        return "\n".join(lines)

    def _lengths(self) -> str:
        counts = [(1 << power, count) for power, count in enumerate(self.histogram) if count]
        return "tokens of a document: " + ", ".join(f"{count:,} from {least:,}" for least, count in counts)


def length_histogram(chunks: Iterable[NDArray[np.int32]]) -> NDArray[np.int64]:
    """How many of the lengths are 1, 2 to 3, 4 to 7, 8 to 15, ..., up to the longest that the format can say."""
    counts = np.zeros(31, dtype=np.int64)
    for lengths in chunks:
        counts += np.bincount(np.frexp(lengths.astype(np.float64))[1] - 1, minlength=31)
    return counts


def report_file(prefix: Path) -> Path:
    """Where the report is kept."""
    return prefix.with_name(prefix.name + ".report.json")


def write_report(prefix: Path, report: PreprocessReport) -> None:
    """Keep the report for programs, beside the data set."""
    content = {
        "data_sets": [str(prefix) for prefix in report.prefixes],
        **{name: report.total(name) for name in ("documents", "tokens", "text_bytes", "empty_documents")},
        "bytes_per_token": report.total("text_bytes") / report.total("tokens"),
        "documents_by_power_of_two_of_tokens": report.histogram,
        "invalid_records": report.total("invalid_records"),
        "first_invalid_records": [asdict(record) for record in report.invalid],
        "seconds": report.seconds,
        "encoded_bytes": report.encoded_bytes,
        "fast_path": report.fast_path,
    }
    write_atomically(report_file(prefix), (json.dumps(content, indent=2) + "\n").encode())
