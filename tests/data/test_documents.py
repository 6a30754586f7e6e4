"""Reading documents: formats, compressions, separators, and every way in which a corpus can be bad."""

import gzip
import json
import lzma
import os
import threading
from pathlib import Path

import pytest
import zstandard

from calm_megatron.config.errors import UserError
from calm_megatron.data.documents import DocumentReader
from calm_megatron.data.sources import find_sources


def read(*paths: Path, **options: object) -> list[str]:
    return list(DocumentReader(find_sources(paths), **options))  # type: ignore[arg-type]


COMPRESSORS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.ZstdCompressor().compress}


@pytest.mark.parametrize("ending", COMPRESSORS)
def test_jsonl_comes_back_from_every_compression(jsonl: Path, texts: list[str], tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"corpus.jsonl{ending}"
    file.write_bytes(COMPRESSORS[ending](jsonl.read_bytes()))
    reader = DocumentReader(find_sources([file]))
    assert list(reader) == texts
    assert (reader.documents, reader.bytes_read) == (len(texts), file.stat().st_size)
    assert reader.text_bytes == sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
def test_cut_compressed_file_is_an_error_not_a_shorter_corpus(jsonl: Path, tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"corpus.jsonl{ending}"
    whole = COMPRESSORS[ending](jsonl.read_bytes())
    file.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(UserError, match="cut or damaged"):
        read(file)


def test_several_zstd_frames_are_one_file(tmp_path: Path) -> None:
    file = tmp_path / "corpus.jsonl.zst"
    frames = [zstandard.ZstdCompressor().compress(json.dumps({"text": text}).encode() + b"\n") for text in ("a", "b")]
    file.write_bytes(b"".join(frames))
    assert read(file) == ["a", "b"]


def test_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.md").write_text("third")
    (tmp_path / "a.txt").write_text("first\n\nstill first\n")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"second"))
    (tmp_path / "ignored.py").write_text("no corpus")
    assert read(tmp_path) == ["first\n\nstill first\n", "second", "third"]


def test_separators_cut_text_files(tmp_path: Path) -> None:
    file = tmp_path / "poems.txt"
    file.write_text("one\ntwo\n\n\nthree\n***\nfour\n  \nfive")
    assert read(file, document_separator="") == ["one\ntwo", "three\n***\nfour", "five"]
    assert read(file, document_separator="***") == ["one\ntwo\n\n\nthree", "four\n  \nfive"]


def test_byte_order_mark_blank_lines_and_empty_documents_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "corpus.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\n{"text": ""}\n{"text": " \\n"}\n{"text": "two"}')
    reader = DocumentReader(find_sources([file]))
    assert list(reader) == ["one", "two"]
    assert reader.empty == 2


BAD_LINES = (
    b'{"text": "fine"}\n{"text": "cut\n{"content": "other key"}\n{"text": "also fine"}\n["text"]\n'
    b'{"text": 5}\n{"text": "\xff\xfe"}\n{"text": "\\ud800 lone"}\n{"text": "last"}\n'
)


def test_invalid_lines_are_counted_and_named(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(BAD_LINES)
    with pytest.raises(UserError) as caught:
        read(file)
    message = str(caught.value)
    assert message.startswith("6 of 9 lines cannot be used")
    for part in (
        str(file),
        "line 2: not valid JSON",
        "line 3: no key",
        "'content'",
        "line 5: a JSON object",
        "line 6:",
    ):
        assert part in message
    assert "line 7: not valid UTF-8: byte 0xff at position 11" in message
    assert "and 1 more" in message and "--skip-invalid" in message


def test_invalid_lines_are_skipped_only_when_asked(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(BAD_LINES)
    reader = DocumentReader(find_sources([file]), skip_invalid=True)
    assert list(reader) == ["fine", "also fine", "last"]
    assert reader.invalid_count == 6
    assert [record.line for record in reader.invalid] == [2, 3, 5, 6, 7, 8]


def test_invalid_utf8_of_a_text_file_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "latin1.txt"
    file.write_bytes("first\nsecond\ncaf\xe9\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"line 3: not valid UTF-8: byte 0xe9 at position 4"):
        read(file)


def test_other_keys_can_be_read(tmp_path: Path) -> None:
    file = tmp_path / "corpus.jsonl"
    file.write_text('{"content": "here"}\n')
    assert read(file, json_key="content") == ["here"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "does not exist"),
        ("empty.jsonl", b"", "the corpus is empty"),
        ("blank.txt", b" \n\n", "the corpus is empty"),
        ("corpus.csv", b"a,b", "ending does not tell"),
    ],
)
def test_no_corpus_is_an_error(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)


def test_folder_without_corpus_and_files_given_twice_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no corpus files"):
        read(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(UserError, match="given twice"):
        read(tmp_path, tmp_path / "a.txt")


def test_pipes_can_be_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(b'{"text": "through a pipe"}\n'))
    writer.start()
    reader = DocumentReader(find_sources([pipe], "jsonl"))
    for text in reader:
        assert (text, reader.bytes_read) == ("through a pipe", 0)
    writer.join()
