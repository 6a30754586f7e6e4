"""Shared fixtures: where the golden figures of the official code lie."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def golden_dir() -> Path | None:
    """Folder of the golden checkpoints: `CALM_GOLDEN`, the sibling folder, or none."""
    candidates = [Path(os.environ["CALM_GOLDEN"])] if "CALM_GOLDEN" in os.environ else []
    candidates.append(ROOT.parent / "shared" / "golden")
    return next((path for path in candidates if (path / "energy" / "io.safetensors").is_file()), None)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the golden checkpoints; skips the test when there is none."""
    folder = golden_dir()
    if folder is None:
        pytest.skip("the golden checkpoints are not here; set CALM_GOLDEN to their folder")
    return folder
