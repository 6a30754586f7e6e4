"""What is given away is loaded by those who have no calm_megatron: by transformers, current and of 4.43."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from calm_megatron.release.exporting import ExportRequest, export_official
from tests.small_runs import ROOT

SCRIPT = ROOT / "tests" / "release" / "load_elsewhere.py"
NAMES = ("ae", "energy", "diffusion", "flow")


@pytest.fixture(scope="module")
def releases(
    golden: Callable[[str], Path], imported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Folder and figures of each release, joined by `=`; one has copies of weights in it."""
    folder = tmp_path_factory.mktemp("releases")
    for name in NAMES:
        export_official(imported(name), folder / name, ExportRequest(duplicates=name in ("ae", "energy")))
    return {name: f"{folder / name}={golden(name) / 'io.safetensors'}" for name in NAMES}


def loaded(python: str | Path, releases: dict[str, str], cache: Path) -> dict[str, dict[str, object]]:
    """What the script says."""
    environment = {"HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [python, "-I", SCRIPT, *releases.values()],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, dict[str, object]] = json.loads(done.stdout.splitlines()[-1])
    return said


def demand_official_figures(said: dict[str, dict[str, object]], releases: dict[str, str]) -> None:
    for name, words in releases.items():
        found = said[words.partition("=")[0]]
        differences = {key: value for key, value in found.items() if isinstance(value, float)}
        assert len(differences) == 2 and all(value < 1e-5 for value in differences.values()), (name, found)
        assert found.get("official generation", True)
        if name != "ae":
            assert isinstance(found["written"], list) and len(found["written"]) == 16
    assert "official generation" in said[releases["energy"].partition("=")[0]]


def test_by_the_transformers_of_this_environment(releases: dict[str, str], tmp_path: Path) -> None:
    demand_official_figures(loaded(sys.executable, releases, tmp_path), releases)


@pytest.mark.slow
@pytest.mark.parametrize("wanted", ["4.43.0", version("transformers")])
def test_in_a_clean_environment(releases: dict[str, str], release: Path, wanted: str, tmp_path: Path) -> None:
    python = tmp_path / "clean" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "clean"], check=True)
    packages = ["torch==2.13.0", f"transformers=={wanted}"]
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", *packages], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"{' and '.join(packages)} could not be installed: {done.stderr[-300:]}")
    said = loaded(python, {**releases, "llama": f"{release}="}, tmp_path)
    assert said["transformers"] == wanted
    demand_official_figures(said, releases)
    current = loaded(sys.executable, {"llama": f"{release}="}, tmp_path)
    assert said[str(release)] == current[str(release)] and said[str(release)]["text"] == "The rain in Spain"
