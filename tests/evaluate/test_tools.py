"""tools/evaluate.py and tools/generate.py on small runs: within this process, and once as a user starts them."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from calm_megatron.config.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
Tool = Callable[..., str]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tool:
    """Runs a tool with arguments; gives what it prints."""

    def run(name: str, *arguments: object) -> str:
        spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / "tools" / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        module.main()
        return capsys.readouterr().out

    return run


def program(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A tool as its own process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def test_as_programs(runs: Path, tmp_path: Path) -> None:
    """Quiet on success, one message and exit code 2 on a user's error."""
    scored = program("evaluate", "--model", runs / "calm", "--output", tmp_path / "scores.json")
    assert (scored.returncode, scored.stderr) == (0, "")
    assert f"wrote {tmp_path / 'scores.json'}" in scored.stdout
    refused = program("generate", "--model", runs / "ae", "--prompt", "x")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ") and "not a CALM" in refused.stderr


def test_evaluate_an_autoencoder(runs: Path, tmp_path: Path, tool: Tool) -> None:
    shown = tool("evaluate", "--model", runs / "ae", "--split", "test", "--output", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (scores["task"], scores["split"], scores["step"]) == ("autoencoder", "test", 7)
    assert 0 <= scores["token_accuracy_sample"] <= 1
    assert scores["latent_size"] == 8
    assert [point["sigma"] for point in scores["robustness"]] == [0.1, 0.2, 0.3, 0.5, 0.7, 1.0]
    assert "token_accuracy_mean" in shown


def test_evaluate_a_calm_beside_its_baselines(runs: Path, tool: Tool) -> None:
    tool("evaluate", "--model", runs / "calm", "--baselines")
    scores = json.loads((runs / "calm" / "evaluation.json").read_text())
    baselines = json.loads((runs / "calm" / "baselines.json").read_text())
    assert (scores["task"], scores["split"], scores["step"]) == ("calm", "valid", 7)
    assert scores["tokens"] == 4 * scores["patches"]
    for found in (scores, *baselines.values()):
        assert 0 <= found["brierlm_low"] <= found["brierlm"] <= found["brierlm_high"] <= 100
        assert len(found["brier"]) == 4
    assert list(baselines) == ["untrained", "unigram"]
    assert baselines["untrained"]["brierlm"] == 0  # Its head is constant: both draws are the same.
    assert baselines["unigram"]["brier"][0] > 0.03 > baselines["untrained"]["brier"][0]
    assert baselines["untrained"]["patches"] == scores["patches"]


def test_evaluate_a_baseline(runs: Path, tmp_path: Path, tool: Tool) -> None:
    tool("evaluate", "--model", runs / "ar", "--rollout-positions", 5, "--output", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["perplexity"] > 1 and scores["task"] == "ar"
    assert 0 <= scores["brierlm_low"] <= scores["brierlm"] <= scores["brierlm_high"] <= 100
    assert len(scores["brier"]) == len(scores["brier_from_probabilities"]) == 4
    tool("evaluate", "--model", runs / "ar", "--output", tmp_path / "plain.json")
    plain = json.loads((tmp_path / "plain.json").read_text())
    assert plain == {name: value for name, value in scores.items() if "brier" not in name and name != "confidence"}


def test_scores_follow_the_seed_and_not_the_batch_size(runs: Path, tmp_path: Path, tool: Tool) -> None:
    found = []
    for number, changes in enumerate([(), ("--micro-batch-size", 3), ("--seed", 6)]):
        tool("evaluate", "--model", runs / "calm", *changes, "--output", tmp_path / f"{number}.json")
        found.append(json.loads((tmp_path / f"{number}.json").read_text()))
    assert found[0]["brier"] == found[1]["brier"]
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-5)
    assert found[0]["loss"] != pytest.approx(found[2]["loss"], rel=1e-5)


def test_evaluate_on_part_of_another_data_set(runs: Path, tmp_path: Path, tool: Tool) -> None:
    checkpoint = runs / "calm" / "checkpoints" / "step_00000007"
    settings = ("--data", runs / "data" / "corpus", "--eval-iters", 2, "--output", tmp_path / "other.json")
    tool("evaluate", "--model", checkpoint, *settings)
    scores = json.loads((tmp_path / "other.json").read_text())
    assert scores["split"] == str(runs / "data" / "corpus")
    assert scores["patches"] == 2 * 4 * 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no/such/run"], "there is no checkpoint"),
        (["--model", "{runs}/ae", "--baselines"], "the model is of type 'autoencoder'"),
        (["--model", "{runs}/calm", "--data", "no/such/data"], "no/such/data"),
        (["--model", "{runs}/calm", "--eval-iters", "-1"], "eval_iters is -1"),
        (["--model", "{runs}/calm", "--rollout-positions", "9"], "a patch holds all four tokens"),
        (["--model", "{runs}/ar", "--rollout-positions", "-1"], "rollout_positions is -1"),
        (["--model", "{runs}/calm", "--baselines", "--output", "x/baselines.json"], "baselines are written to this"),
        (["--model", "{runs}/calm", "--data", "{runs}/data/corpus", "--split", "train"], "scored as a whole"),
        (["--model", "{runs}/calm", "--output", "{runs}"], "no file that could be written"),
        (["--model", "{runs}/calm", "--output", "/proc/x.json"], "cannot be written"),
    ],
)
def test_evaluate_refuses(runs: Path, arguments: list[str], message: str, tool: Tool) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        tool("evaluate", *(word.format(runs=runs) for word in arguments))


def test_generate_from_prompts(runs: Path, tmp_path: Path, tool: Tool) -> None:
    (tmp_path / "prompts.txt").write_text("the king\\nand queen\n\nwinter was\n")
    output = tmp_path / "samples.json"
    settings = ("--max-new-tokens", 10, "--temperature", 0.5, "--num-samples", 20, "--seed", 3)
    prompts = ("--prompt", "a far land", "--prompt", "", "--prompt-file", tmp_path / "prompts.txt")
    shown = tool("generate", "--model", runs / "calm", *prompts, *settings, "--json", "--output", output)
    results = [json.loads(line) for line in shown.splitlines()]
    assert results == json.loads(output.read_text())
    assert [result["prompt"] for result in results] == ["a far land", "", "the king\nand queen", "winter was"]
    for result in results:
        assert (result["temperature"], result["seed"]) == (0.5, 3)
        assert len(result["new_ids"]) <= 10
        assert not result["text"].startswith(result["prompt"]) or not result["prompt"]
    plain = tool("generate", "--model", runs / "calm", *prompts, *settings)
    assert all(f"{result['prompt']}{result['text']}" in plain for result in results)


@pytest.mark.parametrize("model", ["calm", "ar"])
@pytest.mark.parametrize("method", [None, "exact"])
def test_generate_at_any_temperature(runs: Path, model: str, method: str | None, tool: Tool) -> None:
    settings = ("--max-new-tokens", 6, "--temperature", 0.9, "--json", *(("--method", method) if method else ()))
    result = json.loads(tool("generate", "--model", runs / model, "--prompt", "a far land", *settings))
    assert (result["temperature"], result["method"]) == (0.9, method)
    assert len(result["new_ids"]) <= 6


def test_generate_says_where_the_exact_method_gave_up(runs: Path, tool: Tool) -> None:
    settings = ("--temperature", 0.02, "--method", "exact", "--max-draws", 60)
    assert "within --max-draws samples" in tool("generate", "--model", runs / "calm", "--prompt", "x", *settings)


@pytest.mark.parametrize(
    "arguments", [("--method", "exact", "--num-samples", 9), ("--max-draws", 9), ("--method", "sampling")]
)
def test_generate_refuses_options_without_effect(runs: Path, arguments: tuple[object, ...], tool: Tool) -> None:
    with pytest.raises(SystemExit) as stopped:
        tool("generate", "--model", runs / "calm", "--prompt", "x", *arguments)
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "{runs}/ae", "--prompt", "x"], "not a CALM"),
        (["--model", "{runs}/calm", "--prompt", "x", "--temperature", "1.7"], "temperature 1.7 is not in (0, 1]"),
        (["--model", "{runs}/calm", "--prompt", "x", "--temperature", "0.25", "--num-samples", "3"], "num_samples = 3"),
        (["--model", "{runs}/calm", "--prompt", "x", "--method", "logits"], "no logits to divide"),
        (["--model", "{runs}/ar", "--prompt", "x", "--autoencoder", "{runs}/ae"], "has no autoencoder"),
        (["--model", "{runs}/ar", "--prompt", "x", "--partial-patch", "pad"], "no patches to fill up"),
        (["--model", "{runs}/calm", "--prompt-file", "{runs}/nothing.txt"], "cannot read the prompts"),
        (["--model", "{runs}/calm", "--prompt", "x", "--tokenizer", "{runs}/text"], "there is no tokenizer"),
        (["--model", "{runs}/calm", "--prompt", "x", "--seed", "-1"], "seed is -1"),
        (["--model", "{runs}/calm", "--prompt", "gr\udcfcn"], "prompt 1 is not UTF-8"),
        (["--model", "{runs}/calm", "--prompt", "x", "--max-new-tokens", str(10**11)], "max_new_tokens = 100,000,"),
        (["--model", "{runs}/ar", "--prompt", "x", "--max-new-tokens", str(10**30)], "there is no memory"),
        (["--model", "{runs}/calm", "--prompt", "x", "--output", "{runs}"], "no file that could be written"),
        (["--model", "{runs}/calm", "--prompt", "x", "--output", "{runs}/text/tales.jsonl/x"], "cannot be written"),
    ],
)
def test_generate_refuses(runs: Path, arguments: list[str], message: str, tool: Tool) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        tool("generate", *(word.format(runs=runs) for word in arguments))
