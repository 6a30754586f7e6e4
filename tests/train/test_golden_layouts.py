"""The official models on tensor ranks and pipeline stages give the official losses and gradients."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from calm_megatron.checkpoint.load import find_checkpoint, whole_weights
from calm_megatron.checkpoint.official_state import open_official
from calm_megatron.model import names
from tests.small_runs import ROOT
from tests.train.launches import Program, launch

WORKER = ROOT / "tests" / "train" / "golden_worker.py"
LAYOUTS = {
    "tp2": {"tensor": 2, "pipe": 1, "sequence_parallel": False},
    "tp2_sp": {"tensor": 2, "pipe": 1, "sequence_parallel": True},
    "pp2": {"tensor": 1, "pipe": 2, "sequence_parallel": False},
    "tp2_pp2": {"tensor": 2, "pipe": 2, "sequence_parallel": False},
    "tp2_pp2_sp": {"tensor": 2, "pipe": 2, "sequence_parallel": True},
    "pp4": {"tensor": 1, "pipe": 4, "sequence_parallel": False},
}
CASES = [
    *(("energy", layout) for layout in LAYOUTS),
    # Their recorded sequences have five patches, which sequence parallelism cannot share.
    *((model, layout) for model in ("diffusion", "flow") for layout in ("tp2_pp2", "pp4")),
]


@pytest.fixture(scope="module")
def steps(
    tmp_path_factory: pytest.TempPathFactory,
    golden: Callable[[str], Path],
    program: Program,
) -> Path:
    """Folder with loss and gradients of each case; a launch for two ranks and one for four."""
    folder = tmp_path_factory.mktemp("golden")
    for ranks in (2, 4):
        jobs = [
            {
                "checkpoint": str(golden(model)),
                "output": str(folder / model / layout),
                **LAYOUTS[layout],
            }
            for model, layout in CASES
            if LAYOUTS[layout]["tensor"] * LAYOUTS[layout]["pipe"] == ranks
        ]
        launch(program, WORKER, folder / f"jobs_{ranks}.json", jobs, ranks, timeout=300)
    return folder


@pytest.mark.parametrize(("model", "layout"), CASES)
def test_a_layout_gives_the_official_loss_and_gradients(
    steps: Path, golden: Callable[[str], Path], model: str, layout: str
) -> None:
    recorded = load_file(golden(model) / "io.safetensors")
    config = open_official(golden(model)).config
    loss = json.loads((steps / model / layout / "loss.json").read_text())
    assert loss == pytest.approx(recorded["train_loss"].item(), rel=1e-5)
    compared = set()
    for name, gradient in whole_weights(find_checkpoint(steps / model / layout)).items():
        entry, officials = names.entry_of(name)
        for official, part in zip(officials, names.split(gradient, entry.join, config), strict=True):
            norm = recorded[f"gradnorm/{official}"].item()
            assert part.double().norm().item() == pytest.approx(norm, rel=1e-4), official
            if f"grad/{official}" in recorded:
                expected = recorded[f"grad/{official}"]
                torch.testing.assert_close(part, expected, rtol=0, atol=1e-4 * expected.abs().max().item())
            compared.add(official)
    assert compared == {name.removeprefix("gradnorm/") for name in recorded if name.startswith("gradnorm/")}
