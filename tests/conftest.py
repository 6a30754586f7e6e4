"""Shared fixtures: the figures of the official code, a process group of one rank, a small data set, the programs."""

import os
import pydoc_data.topics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from calm_megatron.data.documents import DocumentReader
from calm_megatron.data.preprocess import preprocess
from calm_megatron.data.sources import find_sources
from calm_megatron.data.tokenizer import Tokenizer
from calm_megatron.data.train_tokenizer import train_tokenizer
from tests.small_runs import ROOT, VOCABULARY

if TYPE_CHECKING:
    from calm_megatron.parallel.grid import Grid


def golden_dirs() -> list[Path]:
    """Where golden checkpoints may lie: `CALM_GOLDEN`, the sibling folder, and the small ones that are always here."""
    named = [Path(os.environ["CALM_GOLDEN"])] if "CALM_GOLDEN" in os.environ else []
    return [*named, ROOT.parent / "shared" / "golden", ROOT / "tests" / "fixtures" / "golden"]


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Path]:
    """Finds the folder of a golden checkpoint by its name; skips the test when it is not here."""

    def find(name: str) -> Path:
        for folder in golden_dirs():
            if (folder / name / "io.safetensors").is_file():
                return folder / name
        pytest.skip(f"the golden checkpoint {name} is not here; set CALM_GOLDEN to the folder that holds it")

    return find


@pytest.fixture(scope="session")
def grid() -> Iterator["Grid"]:
    """A world of one rank, with torch's and megatron-core's process groups."""
    from calm_megatron.parallel.grid import one_rank  # takes seconds, and most tests need neither

    with one_rank() as grid:
        yield grid


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python's own documentation as an indexed binary."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = folder / "texts"
    texts.mkdir()
    for name, text in sorted(pydoc_data.topics.topics.items())[:60]:
        (texts / f"{name}.txt").write_text(text)
    train_tokenizer((path.read_text() for path in sorted(texts.iterdir())), folder / "tokenizer", VOCABULARY)
    preprocess(DocumentReader(find_sources([texts])), Tokenizer.load(folder / "tokenizer"), folder / "corpus")
    return folder / "corpus"


@pytest.fixture(scope="session")
def program() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs one of the project's programs, on one rank or under torchrun, and returns what it printed."""

    def run(*command: str | Path, ranks: int = 1, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        launcher = [sys.executable]
        if ranks > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        words = [*launcher, *map(str, command)]
        return subprocess.run(words, capture_output=True, text=True, timeout=timeout, env=environment, check=False)

    return run
