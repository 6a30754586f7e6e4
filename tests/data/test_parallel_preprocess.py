"""Preprocessing on several processes: megatron-core's bytes, whatever the workers, blocks, files and kills."""

import gzip
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tokenizers
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from calm_megatron.config.errors import UserError
from calm_megatron.data import fit
from calm_megatron.data.documents import DocumentReader
from calm_megatron.data.fast_bpe import make_fast_bpe
from calm_megatron.data.indexed import IndexedCorpus
from calm_megatron.data.parts import PartFolder
from calm_megatron.data.preprocess import PreprocessOptions, preprocess
from calm_megatron.data.sources import find_sources
from calm_megatron.data.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
ENDINGS = (".bin", ".idx")
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def content(prefix: Path) -> list[bytes]:
    return [Path(f"{prefix}{ending}").read_bytes() for ending in ENDINGS]


def by_megatron(texts: list[str], file: Path, eod_id: int, prefix: Path) -> list[bytes]:
    """What megatron-core's builder makes of the ids that Hugging Face gives, one document after the other."""
    backend = tokenizers.Tokenizer.from_file(str(file))
    backend.encode_special_tokens = True
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for text in texts:
        ids = [*backend.encode(text, add_special_tokens=False).ids, eod_id]
        builder.add_document(np.array(ids, dtype=np.uint16), [len(ids)])
    builder.finalize(f"{prefix}.idx")
    return content(prefix)


@pytest.fixture(scope="module")
def reference(texts: list[str], tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    prefix = tmp_path_factory.mktemp("megatron") / "set"
    return by_megatron(texts, tokenizer.path / "tokenizer.json", tokenizer.eod_id, prefix)


@pytest.mark.parametrize(
    ("ending", "workers", "block_bytes"),
    [("", 1, 8 << 20), ("", 3, 50_000), (".gz", 2, 50_000), (".zst", 1, 300_000), (".zst", 2, 50_000)],
)
def test_megatrons_bytes_for_all_workers_blocks_and_compressions(
    jsonl: Path,
    tokenizer: Tokenizer,
    reference: list[bytes],
    tmp_path: Path,
    ending: str,
    workers: int,
    block_bytes: int,
) -> None:
    if block_bytes < 1000 and ending != "":
        pytest.skip("one compression is enough for the smallest blocks")
    lines = jsonl.read_bytes()
    file = tmp_path / f"corpus.jsonl{ending}"
    file.write_bytes({"": lines, ".gz": gzip.compress(lines), ".zst": zstandard.compress(lines)}[ending])
    options = PreprocessOptions(workers=workers, block_bytes=block_bytes)
    report = preprocess(DocumentReader(find_sources([file])), tokenizer, tmp_path / "set", options)
    assert report.fast_path
    assert content(tmp_path / "set") == reference
    assert not PartFolder.beside(tmp_path / "set").path.exists()


def test_many_files_of_many_kinds_are_one_corpus(texts: list[str], tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(texts[:20]):
        (folder / f"a{number:02d}.txt").write_text(text)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts[20:400]).encode()
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    table = pyarrow.table({"text": texts[400:800], "n": list(range(400))})
    pyarrow.parquet.write_table(table, folder / "c.parquet", row_group_size=37)
    sources = find_sources([folder / "a*.txt", folder / "*.gz", folder / "c.parquet"])
    made = []
    for workers, block_bytes in ((1, 8 << 20), (2, 20_000)):
        options = PreprocessOptions(workers=workers, block_bytes=block_bytes)
        preprocess(DocumentReader(sources), tokenizer, tmp_path / str(workers), options)
        made.append(content(tmp_path / str(workers)))
    assert made[0] == made[1]
    assert made[0] == by_megatron(
        [text for text in texts[:800] if text.strip()],
        tokenizer.path / "tokenizer.json",
        tokenizer.eod_id,
        tmp_path / "megatron",
    )
    with pytest.raises(UserError, match='no column "txt"; the columns are text, n'):
        preprocess(DocumentReader(sources, json_key="txt", skip_invalid=True), tokenizer, tmp_path / "other")


def test_shards_hold_the_corpus_in_its_order(jsonl: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    reader = DocumentReader(find_sources([jsonl]))
    whole = preprocess(reader, tokenizer, tmp_path / "whole")
    options = PreprocessOptions(workers=2, block_bytes=30_000, tokens_per_shard=30_000)
    report = preprocess(reader, tokenizer, tmp_path / "cut", options)
    assert len(report.prefixes) > 3
    shards = [IndexedCorpus.open(prefix) for prefix in report.prefixes]
    assert b"".join(Path(f"{prefix}.bin").read_bytes() for prefix in report.prefixes) == content(tmp_path / "whole")[0]
    assert [shard.prefix.name for shard in shards[:2]] == ["cut-00000", "cut-00001"]
    assert all(shard.facts.tokens >= 30_000 for shard in shards[:-1])
    assert report.total("text_bytes") == whole.facts.text_bytes and report.histogram == whole.histogram
    assert sum(report.histogram) == whole.facts.documents


def test_shards_of_a_corpus_that_is_replaced_do_not_stay(jsonl: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    reader, prefix = DocumentReader(find_sources([jsonl])), tmp_path / "set"
    shards = PreprocessOptions(workers=1, block_bytes=60_000, tokens_per_shard=1)
    assert len(preprocess(reader, tokenizer, prefix, shards).prefixes) > 2
    (tmp_path / "set-00000.idx").unlink()
    (tmp_path / "set-more.idx").touch()
    before = sorted(tmp_path.iterdir())
    for options in (shards, PreprocessOptions(workers=1)):
        with pytest.raises(UserError, match=r"there is a data set already\n.*set-00001\.idx, .* and \d+ more"):
            preprocess(reader, tokenizer, prefix, options)
    assert sorted(tmp_path.iterdir()) == before
    one = replace(shards, tokens_per_shard=10**8, overwrite=True)
    assert preprocess(reader, tokenizer, prefix, one).prefixes == (tmp_path / "set-00000",)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("set-00000.bin", "set-00000.facts.json", "set-00000.idx", "set-more.idx", "set.report.json")
    ]
    preprocess(reader, tokenizer, prefix, PreprocessOptions(workers=1, overwrite=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("set-more.idx", "set.bin", "set.facts.json", "set.idx", "set.report.json")
    ]


def test_a_run_that_is_taken_up_replaces_its_shards(jsonl: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """As if it had been killed after it published them, with another size of shards this time."""
    reader, prefix = DocumentReader(find_sources([jsonl])), tmp_path / "set"
    options = PreprocessOptions(workers=1, block_bytes=60_000, tokens_per_shard=1)
    preprocess(reader, tokenizer, prefix, options)
    PartFolder.beside(prefix).path.mkdir()
    report = preprocess(reader, tokenizer, prefix, replace(options, tokens_per_shard=10**8))
    assert [path.stem for path in tmp_path.glob("*.idx")] == ["set-00000"] and len(report.prefixes) == 1


def test_invalid_lines_of_later_blocks_have_their_numbers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "corpus.jsonl"
    lines = [json.dumps({"text": f"a line of text, number {number}"}) for number in range(2000)]
    lines[1500] = '{"text": 5}'
    lines[700] = ""
    file.write_text("\n".join(lines))
    options = PreprocessOptions(workers=2, block_bytes=5000)
    with pytest.raises(UserError, match=r"line 1501: \"text\" must be a string"):
        preprocess(DocumentReader(find_sources([file])), tokenizer, tmp_path / "set", options)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]
    report = preprocess(DocumentReader(find_sources([file]), skip_invalid=True), tokenizer, tmp_path / "set", options)
    assert [record.line for record in report.invalid] == [1501]
    saved = json.loads((tmp_path / "set.report.json").read_text())
    assert saved["invalid_records"] == 1 and saved["first_invalid_records"][0]["line"] == 1501
    assert saved["documents"] == 1998


CODE = (
    "import sys; from pathlib import Path\n"
    "from calm_megatron.data.documents import DocumentReader\n"
    "from calm_megatron.data.preprocess import PreprocessOptions, preprocess\n"
    "from calm_megatron.data.sources import find_sources\n"
    "from calm_megatron.data.tokenizer import Tokenizer\n"
    "options = PreprocessOptions(workers=2, block_bytes=40_000)\n"
    "reader, tokenizer = DocumentReader(find_sources([sys.argv[1]])), Tokenizer.load(sys.argv[2])\n"
    "print('ready', file=sys.stderr, flush=True)\n"
    "preprocess(reader, tokenizer, Path(sys.argv[3]), options)\n"
)


def killed_at(moment: float, words: list[str], prefix: Path) -> bool:
    """Start a run and kill it so many seconds after its beginning; whether it was still at work."""
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, *words], env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    while b"ready" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(moment)
    process.kill()
    process.wait()
    process.stderr.close()
    return not Path(f"{prefix}.report.json").exists()


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_kills_at_random_moments_change_nothing(jsonl: Path, tokenizer: Tokenizer, tmp_path: Path, kills: int) -> None:
    corpus, prefix = tmp_path / "corpus.jsonl", tmp_path / "set"
    corpus.write_bytes(jsonl.read_bytes() * 15)
    preprocess(DocumentReader(find_sources([corpus])), tokenizer, tmp_path / "undisturbed")
    expected = content(tmp_path / "undisturbed")
    dice, killed, kept = random.Random(7), 0, 0
    reader = DocumentReader(find_sources([corpus]))
    for _ in range(6 * kills):
        before = set(Path(f"{prefix}.parts").glob("0*.json"))
        if killed_at(dice.uniform(0, 1.5), [str(corpus), str(tokenizer.path), str(prefix)], prefix):
            left = set(Path(f"{prefix}.parts").glob("0*.json"))
            assert before <= left, "finished parts stay"
            killed, kept = killed + 1, max(kept, len(left))
        else:  # It was done before; once more from the beginning.
            assert content(prefix) == expected
            for file in tmp_path.glob("set.*"):
                file.unlink()
        if killed >= kills and kept > 2:
            break
    assert killed >= kills and kept > 2, "the kills hit runs at work"
    left = set(Path(f"{prefix}.parts").glob("0*.json"))
    report = preprocess(reader, tokenizer, prefix, PreprocessOptions(workers=2, block_bytes=40_000, overwrite=True))
    assert report.encoded_bytes < (report.facts.text_bytes or 0) or not left, "finished parts are not made again"
    assert content(prefix) == expected
    IndexedCorpus.open(prefix).verify()


def test_parts_of_something_else_are_refused(jsonl: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder, reader = PartFolder.beside(tmp_path / "set"), DocumentReader(find_sources([jsonl]))
    with folder.opened({"sources": "others"}, restart=False):
        # From another process, as a process does not keep itself out.
        code = (
            "import sys; from pathlib import Path; from calm_megatron.data.parts import PartFolder\n"
            "with PartFolder(Path(sys.argv[1])).opened({}, restart=False): pass"
        )
        done = subprocess.run([sys.executable, "-c", code, str(folder.path)], capture_output=True, text=True, cwd=ROOT)
        assert "another process makes this data set now" in done.stderr
    with pytest.raises(UserError, match=r"these differ: .*sources"):
        preprocess(reader, tokenizer, tmp_path / "set")
    preprocess(reader, tokenizer, tmp_path / "set", PreprocessOptions(restart=True))
    IndexedCorpus.open(tmp_path / "set").verify()


def llama_like(tokenizer: Tokenizer, folder: Path) -> Path:
    """The tokenizer with Llama-3's way to cut words, and words looked up before they are merged."""
    definition = json.loads((tokenizer.path / "tokenizer.json").read_text())
    definition["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }
    definition["model"]["ignore_merges"] = True
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    return folder


@pytest.fixture(scope="module", params=["gpt2", "llama3"])
def fast(request: pytest.FixtureRequest, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tokenizer.path if request.param == "gpt2" else llama_like(tokenizer, tmp_path_factory.mktemp("llama"))
    found = Tokenizer.load(path).with_fast_path()
    assert found.is_fast
    return found


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_fast_path_gives_the_same_ids_for_any_text(fast: Tokenizer, text: str) -> None:
    assert fit.same_ids(fast, [text])


@settings(deadline=None, max_examples=100)
@given(
    words=st.lists(st.sampled_from([" ", "  ", "\n", "\r\n", "\t", "a", "the", "I'll", "'S", "12345", "...", "é", "ſ"]))
)
def test_fast_path_cuts_words_the_same_way(fast: Tokenizer, words: list[str]) -> None:
    assert fit.same_ids(fast, ["".join(words)])


def test_texts_that_tiktoken_gives_up_on_are_encoded_all_the_same(fast: Tokenizer) -> None:
    text = "a" + " " * 99_000 + "b"
    assert fit.same_ids(fast, [text])


def test_fast_path_is_for_what_it_knows_only(tokenizer: Tokenizer, tmp_path: Path) -> None:
    definition = json.loads((tokenizer.path / "tokenizer.json").read_text())
    changes: list[dict[str, object]] = [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"model": {**definition["model"], "dropout": 0.1}},
        {"added_tokens": [{**definition["added_tokens"][0], "special": False}]},
    ]
    file = tmp_path / "tokenizer.json"
    for change in changes:
        file.write_text(json.dumps({**definition, **change}))
        assert make_fast_bpe(file) is None, change
    file.write_text(json.dumps(definition))
    assert make_fast_bpe(file) is not None


def test_fast_path_that_differs_is_not_taken(tokenizer: Tokenizer, texts: list[str], tmp_path: Path) -> None:
    """A word that one way looks up whole and the other must merge, which its merges never do."""
    definition = json.loads((tokenizer.path / "tokenizer.json").read_text())
    model = definition["model"]
    # "Ġth" + "e" is known, but "th" is gone by then: "t" + "h" is taken before "Ġ" + "t".
    model["merges"] = [["t", "h"], ["Ġt", "h"], *[merge for merge in model["merges"] if "".join(merge) != "th"]]
    for name in ("th", "Ġth"):
        model["vocab"].setdefault(name, max(model["vocab"].values()) + 3)
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    changed = Tokenizer.load(tmp_path)
    assert changed.with_fast_path().is_fast and not fit.same_ids(changed.with_fast_path(), texts[:20])
    assert not fit.prove_fast_path(changed, texts[:20]).is_fast
