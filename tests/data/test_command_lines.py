"""The tools as a user runs them: what they make, and one message and nothing left behind when the input is bad."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from calm_megatron.data.indexed import IndexedCorpus
from calm_megatron.data.tokenizer import Tokenizer

Run = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).resolve().parents[2]


def assert_refused(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr
    assert result.stderr.count("error: ") == 1 and len(result.stderr.splitlines()) <= 10
    for part in parts:
        assert part in result.stderr


def test_text_to_data_set(run_tool: Run, jsonl: Path, tmp_path: Path) -> None:
    trained = run_tool("train_tokenizer.py", "--input", jsonl, "--output", tmp_path / "tokenizer", "--vocab-size", 500)
    assert trained.returncode == 0, trained.stderr
    assert "vocabulary 500" in trained.stdout and "warning" not in trained.stdout
    made = run_tool(
        "preprocess_data.py",
        "--input",
        jsonl,
        "--tokenizer",
        tmp_path / "tokenizer",
        "--output-prefix",
        tmp_path / "set",
    )
    assert made.returncode == 0 and made.stderr == "", made.stderr
    corpus = IndexedCorpus.open(tmp_path / "set")
    assert f"{corpus.facts.tokens:,}" in made.stdout
    assert corpus.facts.tokenizer_fingerprint == Tokenizer.load(tmp_path / "tokenizer").fingerprint
    content = (tmp_path / "set.bin").read_bytes()
    (tmp_path / "set.bin").write_bytes(content[:-100])
    expected = f"{len(content) - 100:,} bytes, {len(content):,} expected"
    assert_refused(run_tool("inspect_data.py", "--verify", tmp_path / "set"), "the file of ids is cut", expected)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ("the corpus file does not exist",)),
        (b"\n", ("the corpus is empty",)),
        (
            b'{"text": "a"}\n{"text": "b}\n\n{"txt": "c"}\n',
            ("2 of 3 lines", "line 2: not valid JSON", "line 4: no key"),
        ),
        (b'{"text": "a"}\n{"text": "\xc3("}\n', ("1 of 2 lines", "line 2: not valid UTF-8: byte 0xc3")),
    ],
)
def test_bad_corpus(
    run_tool: Run, tokenizer_dir: Path, tmp_path: Path, content: bytes | None, parts: tuple[str]
) -> None:
    file = tmp_path / "corpus.jsonl"
    if content is not None:
        file.write_bytes(content)
    before = sorted(tmp_path.iterdir())
    result = run_tool(
        "preprocess_data.py", "--input", file, "--tokenizer", tokenizer_dir, "--output-prefix", tmp_path / "set"
    )
    assert_refused(result, *parts, str(file))
    assert sorted(tmp_path.iterdir()) == before


def test_tokenizer_that_is_none(run_tool: Run, jsonl: Path, tmp_path: Path) -> None:
    result = run_tool(
        "preprocess_data.py", "--input", jsonl, "--tokenizer", tmp_path, "--output-prefix", tmp_path / "set"
    )
    assert_refused(result, "there is no tokenizer", "tokenizer.json")


def test_tokenizer_cannot_be_trained_from_nothing(run_tool: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    result = run_tool(
        "train_tokenizer.py", "--input", tmp_path / "empty.txt", "--output", tmp_path / "out", "--vocab-size", 300
    )
    assert_refused(result, "the corpus is empty")
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_missing_options_are_told(run_tool: Run, jsonl: Path) -> None:
    result = run_tool("preprocess_data.py", "--input", jsonl)
    assert result.returncode == 2 and "--tokenizer, --output-prefix" in result.stderr


def test_killed_run_leaves_no_final_name(jsonl: Path, tokenizer_dir: Path, tmp_path: Path) -> None:
    """The corpus comes through a pipe that never ends, so the kill hits a run that is waiting for more."""
    pipe = tmp_path / "corpus.jsonl"
    os.mkfifo(pipe)
    process = subprocess.Popen(
        [
            *(sys.executable, str(ROOT / "tools" / "preprocess_data.py"), "--input", str(pipe)),
            *("--tokenizer", str(tokenizer_dir), "--output-prefix", str(tmp_path / "set")),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        with open(pipe, "wb") as stream:
            stream.write(jsonl.read_bytes())
            stream.flush()
            deadline = time.monotonic() + 120
            while not (tmp_path / "set.parts" / "plan.json").exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            assert process.poll() is None
            process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "set.parts"]


def test_inspect_and_merge(run_tool: Run, prefix: Path, texts: list[str], tmp_path: Path) -> None:
    cut = run_tool(
        *("merge_datasets.py", "--input", prefix, "--split", "70,30", "--output", tmp_path / "a", tmp_path / "b")
    )
    assert cut.returncode == 0, cut.stderr
    joined = run_tool("merge_datasets.py", "--input", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "ab")
    assert joined.returncode == 0, joined.stderr
    shown = run_tool(*("inspect_data.py", tmp_path / "ab", "--verify", "--tokens", "--show", "0", "--limit", "5000"))
    assert shown.returncode == 0, shown.stderr
    assert f"documents  {len(texts):,}," in shown.stdout and "verified" in shown.stdout
    first = shown.stdout.split("tokens\n", 1)[1].removesuffix("<|endoftext|>\n")
    assert first in texts
    assert_refused(run_tool("inspect_data.py", prefix, "--show", "999999"), "there is no document 999999")
    (tmp_path / "a.bin").write_bytes((tmp_path / "a.bin").read_bytes()[:-2])
    assert_refused(run_tool("inspect_data.py", tmp_path / "a"), "the file of ids is cut")


def test_a_folder_is_no_prefix(run_tool: Run, prefix: Path, jsonl: Path, tokenizer_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for output in (f"{tmp_path}/new/", tmp_path / "there", ""):
        making = ("preprocess_data.py", "--input", jsonl, "--tokenizer", tokenizer_dir, "--output-prefix", output)
        assert_refused(run_tool(*making), "the output is a folder, and not a prefix of files")
    assert_refused(run_tool("merge_datasets.py", "--input", prefix, "--output", f"{tmp_path}/m/"), "is a folder")
    empty = ("--input", "", "--tokenizer", tokenizer_dir, "--output-prefix", tmp_path / "set")
    assert_refused(run_tool("preprocess_data.py", *empty), "an input is empty")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_options_that_mean_nothing_are_refused(
    run_tool: Run, prefix: Path, jsonl: Path, tokenizer_dir: Path, tmp_path: Path
) -> None:
    of_sets = ("make_shards.py", "--output", tmp_path / "shards", "--data-sets", prefix)
    of_texts = ("make_shards.py", "--output", tmp_path / "shards", "--input", jsonl, "--tokenizer", tokenizer_dir)
    for words, told in (
        ((*of_sets, "--seed", "-1"), "--seed must be 0 or more"),
        ((*of_sets, "--json-key", "x"), "--json-key has no effect with --data-sets; leave it out"),
        ((*of_sets, "--skip-invalid"), "--skip-invalid has no effect with --data-sets"),
        ((*of_texts, "--seed", "3"), "--seed has no effect with --input"),
        (("inspect_data.py", prefix, "--show", "0", "--limit", "-1"), "--limit must be 0 or more"),
    ):
        done = run_tool(*words)
        assert done.returncode == 2 and done.stdout == "" and told in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "shards").exists()
