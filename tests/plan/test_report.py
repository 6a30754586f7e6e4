"""The printed plan: its figures, its settings and its refusals, by the command line that users type."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from calm_megatron.config.schema import RunConfig
from calm_megatron.plan.layers import layer_costs
from calm_megatron.plan.report import plan_text, read_for_plan
from calm_megatron.plan.stages import stage_layers
from tests.small_runs import ROOT

Program = Callable[..., subprocess.CompletedProcess[str]]
TOOL = ROOT / "tools" / "plan.py"
XL = ROOT / "examples" / "models" / "calm_xl.yaml"
NODE = ROOT / "examples" / "machines" / "gpu_node.yaml"
AUTOENCODER = ROOT / "examples" / "models" / "ae_75m.yaml"


def test_each_stage_has_a_row(small_calm: Callable[..., RunConfig]) -> None:
    config = small_calm(layers=12)
    lines = plan_text(config, [3]).splitlines()
    start = lines.index("3 stages") + 2
    costs = {cost.name: cost for cost in layer_costs(config)}
    whole = sum(cost.step_flops for cost in costs.values())
    for stage, names in enumerate(stage_layers(config, 3)):
        number, layers, parameters, flops, ratio = re.split(r"  +", lines[start + stage].strip())
        assert (number, spelled_out(layers)) == (str(stage), list(names))
        assert parameters == f"{sum(costs[name].parameters for name in names):,}"
        share = sum(costs[name].step_flops for name in names)
        assert flops in (f"{share / 1e6:.3f}M", f"{share:,}")
        assert ratio == f"{3 * share / whole:.3f}"


def spelled_out(layers: str) -> list[str]:
    """`layers.0-1, final_norm` as the names of all."""
    names = []
    for part in layers.split(", "):
        several = re.fullmatch(r"(.+\.)(\d+)-(\d+)", part)
        if several:
            names += [f"{several[1]}{number}" for number in range(int(several[2]), int(several[3]) + 1)]
        else:
            names.append(part)
    return names


def test_the_tool_needs_neither_data_nor_a_folder_and_takes_settings(program: Program) -> None:
    done = program(TOOL, XL, NODE, "--stages", "4", "8", "model.num_layers=18", "--autoencoder", AUTOENCODER)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("26 layers, ") and "left out" not in done.stdout
    assert re.findall(r"^\d stages$", done.stdout, re.MULTILINE) == ["4 stages", "8 stages"]
    ratios = re.findall(r"^  (this plan|DeepSpeed's \w+) +(\d\.\d{3})$", done.stdout, re.MULTILINE)
    assert [name for name, _ in ratios] == 2 * ["this plan", "DeepSpeed's parameters", "DeepSpeed's uniform"]
    assert all(float(ratios[0][1]) <= float(ratio) for _, ratio in ratios[:3])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([XL, "--stages", "25"], "the model has 24 layers"),
        ([XL, "--stages", "four"], "'four' is no number of stages"),
        ([XL, "--stages", "model.num_layers=2"], "no number of stages is given"),
        ([XL, "--stages", "4", "--autoencoder", XL], "give the model file of an autoencoder"),
        ([AUTOENCODER, "--stages", "2"], "an autoencoder is trained without pipeline stages"),
        ([XL, "--stages", "2", "model.layers=2"], "no setting 'model.layers'"),
    ],
    ids=["many", "word", "none", "autoencoder", "no pipeline", "setting"],
)
def test_what_cannot_be_planned_is_refused(arguments: list[str | Path], said: str, program: Program) -> None:
    done = program(TOOL, *arguments)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_what_a_plan_does_not_need_may_be_given(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("data:\n  train_data_path: a\n  valid_data_path: b\n")
    assert read_for_plan([XL, tmp_path / "data.yaml"]).model == read_for_plan([XL]).model
    given = read_for_plan([XL], ["run.directory=here", "data.train_data_path=a", "data.valid_data_path=b"])
    assert (given.run.directory, given.data.train_data_path) == ("here", "a")


def test_the_tool_plans_a_run(program: Program) -> None:
    layout = ["parallel.tensor_model_parallel_size=2", "train.micro_batch_size=1", "train.recompute_granularity=full"]
    done = program(TOOL, XL, NODE, "--gpus", "8", "--gpu", "a100", "--autoencoder", AUTOENCODER, *layout)
    assert done.returncode == 0, done.stderr
    assert "1,829,795,968" in done.stdout and "fits into 90 % of the 80 GB of one a100" in done.stdout
    assert re.search(r"step \d+\.\d{3} s, [\d,]+ tokens/s, MFU \d+\.\d%", done.stdout)
    assert "assumed: matrix products at 50% of the peak" in done.stdout and "layouts that fit" in done.stdout


def test_a_layout_that_does_not_divide_is_replaced_by_the_quickest(program: Program) -> None:
    done = program(TOOL, XL, NODE, "--gpus", "256")  # four sequences at a time for each of 256 ranks are too many
    assert done.returncode == 0, done.stderr
    assert "256 GPUs, or micro-batches x data ranks the global batch: this is the quickest" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([XL, "--gpus", "8", "--gpu", "abacus"], "nothing is known of a GPU 'abacus'"),
        ([XL, "--gpus", "3"], "do not divide 3 GPUs"),
        ([XL, "--gpus", "0"], "gpus is 0"),
        ([XL, "--gpus", "-8"], "gpus is -8"),
        ([XL, "--stages", "4", "--gpu", "a100"], "a GPU is named, but not how many"),
        ([XL, "--gpus", "8", "model.head={type: flow}"], "energy head alone"),
    ],
)
def test_what_cannot_be_told_is_said(arguments: list[str | Path], said: str, program: Program) -> None:
    done = program(TOOL, *arguments)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
