"""What a user can get wrong with the training programs: one message, no traceback, nothing left behind."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from calm_megatron.config.errors import UserError
from calm_megatron.config.files import load_run, to_yaml
from calm_megatron.data.documents import DocumentReader
from calm_megatron.data.preprocess import preprocess
from calm_megatron.data.sources import find_sources
from calm_megatron.data.tokenizer import Tokenizer
from calm_megatron.data.train_tokenizer import train_tokenizer
from calm_megatron.parallel.grid import one_rank
from calm_megatron.train import loop
from calm_megatron.train.tasks import build_task
from tests.small_runs import AUTOENCODER, CALM, ROOT, VOCABULARY, settings

Program = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory, small_corpus: Path, program: Program) -> Path:
    """A trained autoencoder with K = 4 and 16 latent elements."""
    folder = tmp_path_factory.mktemp("autoencoder")
    overrides = settings(AUTOENCODER, run__directory=folder / "run", data__data_path=small_corpus)
    done = program(ROOT / "pretrain_ae.py", written(folder, overrides))
    assert done.returncode == 0, done.stderr
    return folder / "run"


def written(folder: Path, overrides: list[str]) -> Path:
    path = folder / "run.yaml"
    path.write_text(to_yaml(load_run([], overrides)))
    return path


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: "), done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model__latent_size": 8}, ["model.latent_size = 8, but the autoencoder has 16"]),
        ({"model__patch_size": 2}, ["model.patch_size = 2, but the autoencoder has 4"]),
        ({"model__autoencoder": "no_such_run"}, ["there is no checkpoint", "no_such_run"]),
        ({"model__vocab_size": 1000}, ["vocabulary of 1,000", "320"]),
        ({"data__data_path": "no_such_data"}, ["no_such_data"]),
        ({"data__seq_length": 1_000_000}, ["1,000,000"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_calm_refuses_what_does_not_fit(
    tmp_path: Path, small_corpus: Path, autoencoder: Path, change: dict[str, object], words: list[str]
) -> None:
    run = tmp_path / "run"
    base = settings(CALM, run__directory=run, data__data_path=small_corpus, model__autoencoder=autoencoder)
    with one_rank(), pytest.raises(UserError) as refusal:
        loop.run(build_task, load_run([], settings(base, **change)))
    assert all(word in str(refusal.value) for word in words), refusal.value
    assert not run.exists()


def test_a_data_set_of_another_tokenizer_than_the_autoencoders_is_refused(
    tmp_path: Path, small_corpus: Path, autoencoder: Path
) -> None:
    """Of as many entries, so that no size tells."""
    texts = small_corpus.parent / "texts"
    train_tokenizer((path.read_text()[::-1] for path in sorted(texts.iterdir())), tmp_path / "tokenizer", VOCABULARY)
    preprocess(DocumentReader(find_sources([texts])), Tokenizer.load(tmp_path / "tokenizer"), tmp_path / "other")
    run = tmp_path / "run"
    words = settings(CALM, run__directory=run, data__data_path=tmp_path / "other", model__autoencoder=autoencoder)
    with one_rank(), pytest.raises(UserError, match="another tokenizer than the autoencoder's"):
        loop.run(build_task, load_run([], words))
    assert not run.exists()


def test_k_that_does_not_divide_the_sequence_is_refused_within_a_second(tmp_path: Path, program: Program) -> None:
    config = written(
        tmp_path, settings(CALM, run__directory=tmp_path / "run", data__data_path="d", model__autoencoder="a")
    )
    done = program(ROOT / "pretrain_calm.py", config, "data.seq_length=66", timeout=60)
    refused(done, "data.seq_length = 66 is no multiple of model.patch_size = 4", "64 or 68")


def test_the_wrong_program_is_named(tmp_path: Path, small_corpus: Path, program: Program) -> None:
    config = written(tmp_path, settings(AUTOENCODER, run__directory=tmp_path / "run", data__data_path=small_corpus))
    refused(program(ROOT / "pretrain_calm.py", config), "use pretrain_ae.py")


def test_a_cut_data_file_is_refused(tmp_path: Path, small_corpus: Path, program: Program) -> None:
    for path in small_corpus.parent.glob("corpus.*"):
        shutil.copy(path, tmp_path / path.name)
    binary = tmp_path / "corpus.bin"
    binary.write_bytes(binary.read_bytes()[:-100])
    config = written(
        tmp_path, settings(AUTOENCODER, run__directory=tmp_path / "run", data__data_path=tmp_path / "corpus")
    )
    refused(program(ROOT / "pretrain_ae.py", config), "corpus.bin", "bytes")


def test_another_model_in_the_run_folder_is_refused(
    tmp_path: Path, small_corpus: Path, autoencoder: Path, program: Program
) -> None:
    overrides = settings(AUTOENCODER, run__directory=autoencoder, data__data_path=small_corpus, model__hidden_size=48)
    before = sorted(path for path in autoencoder.rglob("*"))
    done = program(ROOT / "pretrain_ae.py", written(tmp_path, overrides))
    refused(done, "model.hidden_size was 32 and is now 48", "run.directory")
    assert sorted(path for path in autoencoder.rglob("*")) == before
