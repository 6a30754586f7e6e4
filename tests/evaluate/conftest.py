"""A data set of real text and untrained runs on it, as training would leave them."""

import json
import random
from pathlib import Path

import pytest

from calm_megatron.checkpoint.store import CheckpointStore
from calm_megatron.config.files import parse_run
from calm_megatron.config.schema import ArConfig, AutoencoderConfig, CalmConfig, RunConfig
from calm_megatron.data.documents import DocumentReader
from calm_megatron.data.preprocess import preprocess
from calm_megatron.data.sources import find_sources
from calm_megatron.data.tokenizer import Tokenizer
from calm_megatron.data.train_tokenizer import train_tokenizer
from calm_megatron.model.ar_baseline import ArBaseline
from calm_megatron.model.autoencoder import Autoencoder, FrozenAutoencoder
from calm_megatron.model.calm import Calm
from calm_megatron.model.initialise import initialise
from calm_megatron.parallel.grid import Grid, one_rank
from tests.small_engine import SmallEngine, save

TEXT = "the king and queen of a far land went to sea with all their men but came home when winter was near"
DATA = {"split": "60,20,20", "seq_length": 32}
TRAIN = {"train_iters": 1, "micro_batch_size": 4, "global_batch_size": 4}


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `text/`, a data set `data/corpus`, and the runs `ae`, `calm` and `ar`, each with one checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    dice = random.Random(0)
    (folder / "text").mkdir()
    documents = [" ".join(dice.choice(TEXT.split()) for _ in range(dice.randint(10, 60))) for _ in range(150)]
    (folder / "text" / "tales.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))

    def reader() -> DocumentReader:
        return DocumentReader(find_sources([str(folder / "text")]))

    train_tokenizer(reader(), folder / "tokenizer", 300)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    preprocess(reader(), tokenizer, folder / "data" / "corpus")
    _write_runs(folder, tokenizer)
    return folder


def _write_runs(folder: Path, tokenizer: Tokenizer) -> None:
    sizes = {"vocab_size": tokenizer.vocab_size, "latent_size": 8, "hidden_size": 32, "ffn_hidden_size": 64}
    data = {"data_path": str(folder / "data" / "corpus"), **DATA}

    def config(name: str, model: dict[str, object]) -> RunConfig:
        run = {"directory": str(folder / name), "seed": 5}
        return parse_run({"run": run, "model": model, "data": data, "train": TRAIN}, "a test")

    ae_run = config("ae", {"type": "autoencoder", **sizes})
    assert isinstance(ae_run.model, AutoencoderConfig)
    transformer = {"num_layers": 1, "num_attention_heads": 4, "head": {"num_layers": 1, "noise_size": 8}}
    calm_run = config(
        "calm",
        {"type": "calm", "autoencoder": str(folder / "ae"), "pad_token_id": tokenizer.pad_id, **sizes, **transformer},
    )
    assert isinstance(calm_run.model, CalmConfig)
    backbone = {"hidden_size": 32, "ffn_hidden_size": 64, "num_layers": 1, "num_attention_heads": 4}
    ar_run = config("ar", {"type": "ar", "vocab_size": tokenizer.vocab_size, **backbone})
    assert isinstance(ar_run.model, ArConfig)
    with one_rank() as grid:
        autoencoder = Autoencoder(ae_run.model)
        initialise(autoencoder, 5, std=0.3)
        _write_run(ae_run, grid, tokenizer, autoencoder)
        calm = Calm(calm_run.model, FrozenAutoencoder(autoencoder))
        initialise(calm, 5, std=0.3)
        _write_run(calm_run, grid, tokenizer, calm)
        ar = ArBaseline(ar_run.model)
        initialise(ar, 5, std=0.3)
        _write_run(ar_run, grid, tokenizer, ar)


def _write_run(config: RunConfig, grid: Grid, tokenizer: Tokenizer, module: Autoencoder | Calm | ArBaseline) -> None:
    save(CheckpointStore(config, grid), SmallEngine(module), 7)
    folder = Path(config.run.directory) / "tokenizer"
    folder.mkdir()
    for file in tokenizer.path.glob("*.json"):
        (folder / file.name).write_text(file.read_text())
