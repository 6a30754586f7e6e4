"""Where golden checkpoints are, and which figures belong to them."""

from collections.abc import Callable
from pathlib import Path

import pytest

FIGURES = {"energy_k2_bin": "energy_k2"}
"""Of a checkpoint that is another one in other files."""


def golden_folder(golden: Callable[[str], Path], name: str) -> Path:
    """The folder of a golden checkpoint; skips the test when it is not here."""
    folder = golden(FIGURES.get(name, name)).with_name(name)
    if not folder.is_dir():
        pytest.skip(f"the golden checkpoint {name} is not here; set CALM_GOLDEN to the folder that holds it")
    return folder
