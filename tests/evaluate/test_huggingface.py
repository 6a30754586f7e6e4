"""BrierLM of models in Hugging Face directories, made here; skipped where transformers is not installed."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

from calm_megatron.config.errors import UserError
from calm_megatron.data.tokenizer import Tokenizer
from calm_megatron.evaluate.huggingface import CausalLM

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def test_without_transformers_the_message_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UserError, match="transformers cannot be imported"):
        CausalLM(tmp_path, CPU)


@pytest.fixture(scope="module")
def directory(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Llama with the tokenizer of the small data set."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("llama")
    vocab_size = Tokenizer.load(runs / "tokenizer").vocab_size
    config = transformers.LlamaConfig(
        vocab_size=vocab_size, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.8, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_file=str(runs / "tokenizer" / "tokenizer.json")).save_pretrained(
        folder
    )
    return folder


@torch.no_grad()
def test_draws_follow_the_softmax(directory: Path) -> None:
    model, context, times = CausalLM(directory, CPU), [5, 9, 11], 4000
    draws_2RO = model.draw([context] * times, range(times))
    assert draws_2RO.shape == (2, times, 4)
    network = model._model
    chances = network(torch.tensor([context])).logits[0, -1].double().softmax(dim=-1)
    for first in draws_2RO[:, :, 0]:
        counts = first.bincount(minlength=len(chances)).double()
        frequent = chances * times > 20
        chi_square = float(((counts - times * chances) ** 2 / (times * chances))[frequent].sum())
        degrees = int(frequent.sum())
        assert degrees > 5 and chi_square < degrees + 4.5 * (2 * degrees) ** 0.5
    common = int(chances.argmax())
    behind = draws_2RO[:, :, 1][draws_2RO[:, :, 0] == common]
    chances = network(torch.tensor([[*context, common]])).logits[0, -1].double().softmax(dim=-1)
    counts = behind.bincount(minlength=len(chances)).double()
    assert float((counts / len(behind) - chances).abs().max()) < 4.5 * (0.25 / len(behind)) ** 0.5
    assert float((draws_2RO[0] != draws_2RO[1]).float().mean()) > 0.5


def test_draws_do_not_depend_on_the_batch(directory: Path) -> None:
    model, contexts = CausalLM(directory, CPU), [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    together = model.draw(contexts, [3, 4, 5])
    alone = [model.draw([context], [seed]) for context, seed in zip(contexts, [3, 4, 5], strict=True)]
    assert torch.equal(together, torch.cat(alone, dim=1))


def test_the_tool(directory: Path, runs: Path, tmp_path: Path, program: Callable[..., CompletedProcess[str]]) -> None:
    output = tmp_path / "new" / "brier.json"
    settings = ("--input", runs / "text", "--context-length", "24", "--places", "3", "--max-documents", "40")
    done = program("tools/brier.py", "--model", directory, *settings, "--output", output)
    assert done.returncode == 0, done.stderr
    score = json.loads(output.read_text())
    assert 0 <= score["brierlm_low"] <= score["brierlm"] <= score["brierlm_high"] <= 100
    assert score["pieces"] > 20 and score["places"] > score["pieces"]
    assert list(output.parent.iterdir()) == [output]


def test_the_tool_refuses_what_is_no_model(
    runs: Path, tmp_path: Path, program: Callable[..., CompletedProcess[str]]
) -> None:
    refused = program("tools/brier.py", "--model", tmp_path, "--input", runs / "text", "--output", tmp_path / "x.json")
    message = "has no config.json" if importlib.util.find_spec("transformers") else "transformers cannot be imported"
    assert refused.returncode == 2 and message in refused.stderr


def test_the_tool_refuses_a_folder_as_its_output(
    runs: Path, tmp_path: Path, program: Callable[..., CompletedProcess[str]]
) -> None:
    refused = program("tools/brier.py", "--model", tmp_path, "--input", runs / "text", "--output", tmp_path)
    assert refused.returncode == 2 and "no file that could be written" in refused.stderr
