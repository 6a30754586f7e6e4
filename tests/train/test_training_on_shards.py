"""Training from tar shards over http: a killed run goes on as if nothing had happened, on other ranks too."""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from calm_megatron.config.files import load_run, to_yaml
from calm_megatron.data.indexed import IndexedCorpus
from calm_megatron.data.tar_shards import corpus_documents, make_shards
from calm_megatron.telemetry.run_log import read_log
from tests.small_runs import AUTOENCODER, ROOT, settings

STEPS = 30
Program = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def server(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("shards")
    corpus = IndexedCorpus.open(small_corpus)
    manifest = make_shards(corpus_documents(corpus, 1), corpus.facts.meaning, folder, 40_000)
    assert len(manifest.shards) > 4
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_address[1]}/{{}}"
        serving.shutdown()


def config_file(server: str, corpus: Path, folder: Path, name: str) -> Path:
    """Settings of a run on the shards, in a file; the run's folder bears the name."""
    overrides = settings(
        AUTOENCODER,
        checkpoint__save_interval=3,
        checkpoint__keep_every=3,
        train__train_iters=STEPS,
        optimizer__lr_decay_iters=STEPS,
        data__num_workers=2,
        data__train_shards=server,
        data__shard_streams=4,
        data__valid_data_path=corpus,
        run__directory=folder / name,
    )
    path = folder / f"{name}.yaml"
    path.write_text(to_yaml(load_run([], [word for word in overrides if not word.startswith("data.split=")])))
    return path


def losses(run: Path) -> list[float]:
    return [record.values["loss"] for record in read_log(run / "log.jsonl").train]


def killed_behind_its_first_checkpoint(config: Path, run: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, ROOT / "pretrain_ae.py", config], env=environment)
    deadline = time.monotonic() + 300
    while not (run / "checkpoints" / "step_00000003" / "manifest.json").is_file() or len(losses(run)) < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (run / "evaluation.json").exists()


def test_a_killed_run_has_the_losses_of_an_undisturbed_one(
    server: str, small_corpus: Path, tmp_path: Path, program: Program
) -> None:
    whole, killed = (config_file(server, small_corpus, tmp_path, name) for name in ("whole", "killed"))
    done = program(ROOT / "pretrain_ae.py", whole)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = losses(tmp_path / "whole")
    assert len(expected) == STEPS
    waits = [record.values["speed/data_wait_seconds"] for record in read_log(tmp_path / "whole" / "log.jsonl").train]
    assert min(waits) >= 0

    killed_behind_its_first_checkpoint(killed, tmp_path / "killed")
    shutil.copytree(tmp_path / "killed", tmp_path / "by_two")
    done = program(ROOT / "pretrain_ae.py", killed)
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "killed") == expected

    done = program(
        *(ROOT / "pretrain_ae.py", killed, f"run.directory={tmp_path / 'by_two'}", "train.micro_batch_size=1"), ranks=2
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "by_two") == pytest.approx(expected, rel=1e-4)
