"""One model in any layout: losses, norms, scores and initial weights are those of one rank.

The layouts of a world size share one launch, since starting ranks costs most of the time.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch

from calm_megatron.checkpoint.load import whole_weights
from calm_megatron.telemetry.run_log import read_log
from tests.train.launches import LAYOUTS_WORKER, Program, launch
from tests.train.layout_matrix import QUICK, Layout, autoencoders, every_layout, overrides

LAST = "checkpoints/step_00000010"
Train = Callable[[Iterable[Layout]], Path]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory, small_corpus: Path, program: Program) -> Train:
    """Trains layouts and the runs that they are held against; returns the folder with all."""
    folder = tmp_path_factory.mktemp("matrix")

    def run(layouts: Iterable[Layout]) -> Path:
        jobs: dict[int, list[list[str]]] = defaultdict(list)
        layouts = list(layouts)
        jobs[1] = autoencoders(folder, small_corpus, layouts)
        for layout in (*dict.fromkeys(layout.reference for layout in layouts), *layouts):
            jobs[layout.ranks].append(overrides(layout, folder, layout.name, small_corpus))
        for ranks, wanted in sorted(jobs.items()):
            launch(
                program, LAYOUTS_WORKER, folder / f"jobs_{ranks}.json", wanted, ranks, words=["record"], timeout=3000
            )
        return folder

    return run


@pytest.fixture(scope="module")
def quick(train: Train) -> Path:
    """Folder with the quick part."""
    return train(QUICK)


@pytest.fixture(scope="module")
def everything(train: Train) -> Path:
    """Folder with the whole matrix."""
    return train(every_layout())


@pytest.mark.parametrize("layout", QUICK, ids=lambda layout: layout.name)
def test_a_layout_gives_the_run_of_one_rank(quick: Path, layout: Layout) -> None:
    demand_equal_runs(quick, layout)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [*every_layout()], ids=lambda layout: layout.name)
def test_every_layout_gives_the_run_of_one_rank(everything: Path, layout: Layout) -> None:
    demand_equal_runs(everything, layout)


@pytest.mark.parametrize("model", ["calm", "diffusion", "flow"])
def test_the_runs_depend_on_what_the_layouts_share(quick: Path, model: str) -> None:
    """Else a wrong backbone would go unseen: its gradient is a good part of the norm, and the loss falls."""
    losses = series(quick, Layout(model), "loss")
    assert losses[-1] < 0.8 * losses[0]
    first, last = (weights(quick, Layout(model), which) for which in ("initial/checkpoints/step_00000000", LAST))
    moved = [name for name in first if (first[name] - last[name]).abs().mean() > 1e-3]
    assert len(moved) > 0.9 * len(first)


def demand_equal_runs(folder: Path, layout: Layout) -> None:
    """Compare a run to that of one rank, number by number.

    bf16 keeps 8 bits of a number and fp16 11: losses of fp32 may be off by a unit of the last, and gradients, which
    went through many layers, by sixteen (ten were seen). Two fp32 runs differ by the order of sums alone.
    """
    both = (layout, layout.reference)
    ours, theirs = (series(folder, which, "loss") for which in both)
    norms, their_norms = (series(folder, which, "grad_norm") for which in both)
    unit = {"fp32": None, "bf16": 2**-8, "fp16": 2**-11}[layout.precision]
    assert len(ours) == 10
    assert ours[0] == pytest.approx(theirs[0], rel=unit or 1e-5)
    assert ours == pytest.approx(theirs, rel=unit or 1e-4)
    assert norms == pytest.approx(their_norms, rel=16 * unit if unit else 1e-4)
    score, their_score = (
        json.loads((folder / which.name / "evaluation.json").read_text()) for which in (layout, layout.reference)
    )
    assert score["tokens"] == their_score["tokens"]
    assert score["loss"] == pytest.approx(their_score["loss"], rel=unit or 1e-4)
    if "brier_from_probabilities" in score and unit is None:
        known = "brier_from_probabilities"
        assert score[known] == pytest.approx(their_score[known], rel=1e-4) and score[known][0] > 0
    elif "brier" in score and "brier" in their_score and unit is None:
        # Whole counts: of some hundred draws, one whose largest two logits are close may turn.
        assert score["brier"] == pytest.approx(their_score["brier"], abs=2.5 / score["patches"])
        assert any(score["brier"])
    initial, their_initial = (weights(folder, which, "initial/checkpoints/step_00000000") for which in both)
    assert initial.keys() == their_initial.keys()
    rounded = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[layout.precision]
    for name, weight in initial.items():
        assert torch.equal(weight, their_initial[name].to(rounded).float()), f"{name} starts with other weights"
    if layout.precision == "fp32":
        last, their_last = (weights(folder, which, LAST) for which in both)
        for name, weight in last.items():
            # Adam turns the rounding of a tiny gradient into a step of any size up to the learning rate.
            assert (weight - their_last[name]).abs().mean() < 2e-5, name


def series(folder: Path, layout: Layout, name: str) -> list[float]:
    """Values of all steps."""
    return read_log(folder / layout.name / "log.jsonl").series(name)[1]


def weights(folder: Path, layout: Layout, checkpoint: str) -> dict[str, torch.Tensor]:
    """Whole weights of one of a run's checkpoints."""
    return whole_weights(folder / layout.name / checkpoint)
