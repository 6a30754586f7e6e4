"""Golden checkpoints taken in, once for all tests, and a baseline run with a tokenizer."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from calm_megatron.release.importing import import_official
from tests.release.golden_folders import golden_folder


@pytest.fixture(scope="session")
def imported(golden: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder that a golden checkpoint is taken into."""
    folder = tmp_path_factory.mktemp("imported")

    @cache
    def take(name: str) -> Path:
        import_official(golden_folder(golden, name), folder / name)
        return folder / name

    return take


@pytest.fixture
def copied(golden: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of an official checkpoint, to be damaged."""

    def copy(name: str) -> Path:
        source, target = golden_folder(golden, name), tmp_path / "official" / name
        target.mkdir(parents=True)
        for file in source.iterdir():
            if file.name != "io.safetensors":
                shutil.copyfile(file, target / file.name)
        return target

    return copy
