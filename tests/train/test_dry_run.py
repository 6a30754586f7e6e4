"""Every example built for many ranks on one process, beside the planner's counts; each part of the model once."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from calm_megatron.config.schema import ArConfig, CalmConfig
from calm_megatron.plan.counts import ar_parameters, autoencoder_parameters, calm_parameters
from calm_megatron.plan.report import read_for_plan
from tests.small_runs import ROOT

Program = Callable[..., subprocess.CompletedProcess[str]]
MODELS = ROOT / "examples" / "models"
NODE = ROOT / "examples" / "machines" / "gpu_node.yaml"
XL = [MODELS / "calm_xl.yaml", NODE]
LAYOUT = [
    "parallel.tensor_model_parallel_size=2",
    "parallel.pipeline_model_parallel_size=4",
    "train.micro_batch_size=1",
]


def run_worker(cases: list[tuple[str, list[str], int]], tmp_path: Path) -> dict[str, dict[str, object]]:
    """Dry runs in a process of their own, as this one may have process groups."""
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, ROOT / "tests" / "train" / "dry_run_worker.py", tmp_path]
    done = subprocess.run(words, capture_output=True, text=True, timeout=500, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, object]] = json.loads((tmp_path / "found.json").read_text())
    return found


def test_every_example_is_built_in_its_layouts(tmp_path: Path) -> None:
    cases: list[tuple[str, list[str], int]] = []
    for path in sorted(MODELS.glob("*.yaml")):
        cases.append((path.stem, [], 1))
        if not path.stem.startswith("ae"):
            tensor_pipe = ["parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=3"]
            cases.append((path.stem, tensor_pipe, 6))
    cases.append(("calm_xl", [*LAYOUT, "parallel.sequence_parallel=true"], 1024))
    cases.append(("calm_m", ["parallel.tensor_model_parallel_size=8", "parallel.zero_stage=3"], 64))
    found = run_worker(cases, tmp_path)
    for name, settings, ranks in cases:
        config = read_for_plan([MODELS / f"{name}.yaml", NODE], settings)
        model = config.model
        count = (
            calm_parameters(model) if isinstance(model, CalmConfig)
            else ar_parameters(model) if isinstance(model, ArConfig)
            else autoencoder_parameters(model)
        )  # fmt: skip
        built = found[f"{name} {ranks}"]
        assert built["parameters"] == sum(count.values()), name
        assert built["files"] == ranks and built["ranks"] == list(range(ranks)), name


def test_the_command_line_builds_calm_xl_for_1024_ranks(program: Program) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = program(ROOT / "pretrain_calm.py", *XL, "--dry-run", "1024", *LAYOUT)
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before.ru_utime
    assert done.returncode == 0, done.stderr
    assert "2 tensor x 4 pipeline x 128 data, 2 micro-batches" in done.stdout
    assert "rank_00000.safetensors to rank_01023.safetensors, 1024 files" in done.stdout
    assert 0 < seconds < 60
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 8 * 2**20, "KiB of the largest child so far"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dry-run", "1000", "parallel.pipeline_model_parallel_size=16"], "does not divide 1000"),
        (["--dry-run", "512", "train.micro_batch_size=1"], "256 is not a multiple of micro_batch_size"),
        (["--dry-run", "8", "parallel.tensor_model_parallel_size=3"], "does not divide model.num_attention_heads"),
        (["--dry-run", "0"], "a run has at least one rank"),
    ],
)
def test_what_a_start_would_refuse_is_refused(words: list[str], said: str, program: Program) -> None:
    done = program(ROOT / "pretrain_calm.py", *XL, *words)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
