"""What the inspector says of a checkpoint, and of two."""

import dataclasses
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from calm_megatron.checkpoint.describe import describe, describe_comparison
from calm_megatron.checkpoint.inspect import Difference, compare_checkpoints, inspect_checkpoint
from calm_megatron.checkpoint.load import find_checkpoint
from calm_megatron.checkpoint.store import CheckpointStore
from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import RunConfig
from calm_megatron.parallel.grid import Grid
from tests.checkpoint.damage import DAMAGES
from tests.small_engine import SmallEngine, progress_at, save
from tests.small_runs import ROOT

INSPECT, RESHARD = (ROOT / "tools" / f"{name}_checkpoint.py" for name in ("inspect", "reshard"))
FILES = ["rank_00000.safetensors", "progress.json", "config.yaml"]
ConfigOf = Callable[..., RunConfig]
Program = Callable[..., subprocess.CompletedProcess[str]]


def test_a_whole_checkpoint(baseline_run: Path) -> None:
    found = inspect_checkpoint(baseline_run)
    assert found.whole and found.path == str(find_checkpoint(baseline_run))
    assert [(file.name, file.problem) for file in found.files] == [(name, None) for name in FILES]
    assert found.progress["step"] == 5 and found.progress["consumed_tokens"] == 1280
    assert found.weights["output.weight"] == (77, 16)
    assert found.parameters == 2 * 77 * 16 + 2 * (2 * 16 + 32 * 16 + 16 * 16 + 48 * 16 + 16 * 24) + 16
    assert found.layout["zero_stage"] == 1 and found.engine["updates"] == 3
    assert found.settings["model.rotary_base"] == 10000.0 and "model.rotary_base" not in found.chosen
    assert found.settings["parallel.zero_stage"] == 1 and "parallel.zero_stage" in found.chosen
    text = describe(found)
    assert f"{found.path}: whole" in text and "DAMAGED" not in text
    for words in (r"step +5\n", r"parameters +6,384\n", r"progress\.json +\d+ +ok\n", r"parallel\.zero_stage +1\n"):
        assert len(re.findall(words, f"{text}\n")) == 1, (words, text)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_told_with_what_can_be_read(baseline_run: Path, name: str, damage: str) -> None:
    folder = find_checkpoint(baseline_run)
    DAMAGES[damage](folder / name)
    found = inspect_checkpoint(folder)
    assert not found.whole and len(found.problems) == 1 and found.problems[0].startswith(name)
    assert [file.name for file in found.files if file.problem] == [name for _ in found.files[:1]]
    assert bool(found.progress) == (name not in ("progress.json", "manifest.json"))
    assert bool(found.settings) == (name not in ("config.yaml", "manifest.json"))
    assert bool(found.weights) == (name == "progress.json")
    text = describe(found)
    assert f"{folder}: DAMAGED" in text and found.problems[0] in text


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no checkpoint"):
        inspect_checkpoint(tmp_path)


@pytest.fixture
def two(grid: Grid, config_of: ConfigOf, engine: SmallEngine) -> Callable[..., tuple[Path, Path]]:
    """Two checkpoints, the second after a change."""

    def make(change: Callable[[SmallEngine], object], **settings: object) -> tuple[Path, Path]:
        first = save(CheckpointStore(config_of(), grid), engine, 5)
        first = first.rename(first.with_name("first"))
        with torch.no_grad():
            change(engine)
        return first, save(CheckpointStore(config_of(**settings), grid), engine, 5)

    return make


def test_equal_states_are_equal_whatever_the_settings(two: Callable[..., tuple[Path, Path]]) -> None:
    first, second = two(lambda engine: None, optimizer__lr=0.5, parallel__zero_stage=2)
    found = compare_checkpoints(inspect_checkpoint(first), inspect_checkpoint(second))
    assert found.equal
    assert found.settings == {"optimizer.lr": (3e-4, 0.5), "parallel.zero_stage": (0, 2)}
    assert found.layout == {"zero_stage": (0, 2)}
    text = describe_comparison(found)
    assert "equal to the last bit" in text and "optimizer.lr" in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda engine: engine.module.weight[1, 2].add_(0.25), Difference("weight", "weight", 1, 6, 0.25)),
        (lambda engine: engine.moments["exp_avg"]["bias"].fill_(torch.nan), Difference("bias", "exp_avg", 2, 2, None)),
        (lambda engine: engine.module.bias[0].fill_(-0.0), Difference("bias", "weight", 1, 2, 0.0)),
    ],
    ids=["one element", "not finite", "sign of zero"],
)
def test_each_weight_or_moment_that_differs_is_told(
    two: Callable[..., tuple[Path, Path]],
    engine: SmallEngine,
    change: Callable[[SmallEngine], object],
    expected: Difference,
) -> None:
    nn.init.zeros_(engine.module.bias)
    nn.init.ones_(engine.module.weight)
    first, second = (inspect_checkpoint(path) for path in two(change))
    found = compare_checkpoints(first, second)
    assert not found.equal and found.weights == (expected,)
    assert compare_checkpoints(second, first).weights == (expected,)
    text = describe_comparison(found)
    assert "state: different" in text and f"{expected.kind}/{expected.name}" in text


def test_other_progress_updates_and_weights_are_told(
    two: Callable[..., tuple[Path, Path]], grid: Grid, config_of: ConfigOf
) -> None:
    first, second = two(lambda engine: setattr(engine, "updates", 9))
    found = compare_checkpoints(inspect_checkpoint(first), inspect_checkpoint(second))
    assert not found.equal and not found.weights and found.engine == {"updates": (3, 9)}
    other = SmallEngine(nn.Linear(3, 4, bias=False))
    third = save(CheckpointStore(config_of(), grid), other, 6)
    found = compare_checkpoints(inspect_checkpoint(second), inspect_checkpoint(third))
    assert not found.equal and found.shapes == {"weight": ((2, 3), (4, 3)), "bias": ((2,), None)}
    assert found.progress["step"] == (5, 6)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int | None, str]]:
    """Runs a tool's `main` with arguments; gives its exit code and what it prints."""

    def run(path: Path, *arguments: object) -> tuple[int | None, str]:
        monkeypatch.setattr(sys, "argv", [path.name, *map(str, arguments)])
        code = runpy.run_path(str(path), run_name="tool")["main"]()
        shown = capsys.readouterr()
        assert shown.err == ""
        return code, shown.out

    return run


def test_the_command_lines(baseline_run: Path, tmp_path: Path, tool: Callable[..., tuple[int | None, str]]) -> None:
    new = tmp_path / "new" / "checkpoints" / "step_00000005"
    _, text = tool(RESHARD, baseline_run, new, "--tensor-model-parallel-size", "2", "--files", "2")
    assert text.endswith(f"is now in {new} too, for tensor_model_parallel_size 2, in 4 files\n")
    code, text = tool(INSPECT, baseline_run, new, "--json")
    found = json.loads(text)
    assert code == 0 and found["comparison"]["equal"] and found["checkpoints"][1]["layout"]["world_size"] == 4
    plain = json.loads(json.dumps(dataclasses.asdict(inspect_checkpoint(baseline_run))))
    assert found["checkpoints"][0] == {**plain, "whole": True, "parameters": 6384}
    code, text = tool(INSPECT, baseline_run, baseline_run / "checkpoints" / "step_00000003")
    assert code == 1 and text.count(": whole\n") == 2 and "state: different" in text
    DAMAGES["cut"](new / "rank_00003.safetensors")
    code, text = tool(INSPECT, baseline_run, new)
    assert code == 1 and "DAMAGED: rank_00003.safetensors has" in text and "state:" not in text


def test_as_programs(baseline_run: Path, tmp_path: Path, program: Program) -> None:
    (find_checkpoint(baseline_run) / "config.yaml").unlink()
    done = program(INSPECT, baseline_run)
    assert (done.returncode, done.stderr) == (1, "") and "config.yaml cannot be read" in done.stdout
    done = program(RESHARD, baseline_run, tmp_path / "x", "--tensor-model-parallel-size", "1")
    assert done.returncode == 2 and done.stderr.startswith("error: config.yaml cannot be read")


def test_a_run_that_went_on_differs_in_everything_but_is_told_in_a_page(baseline_run: Path) -> None:
    folder = baseline_run / "checkpoints"
    first, second = (inspect_checkpoint(folder / f"step_{step:08d}") for step in (3, 5))
    found = compare_checkpoints(first, second)
    assert len(found.weights) == len(first.weights)  # of this run, the weights alone
    assert found.progress == {
        key: (value, dataclasses.asdict(progress_at(5))[key])
        for key, value in dataclasses.asdict(progress_at(3)).items()
        if key in ("step", "consumed_samples", "consumed_tokens")
    }
    assert len(describe_comparison(found).splitlines()) < 40
