"""The project's files and modules, as the rules of the design look at them."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def tracked() -> list[Path]:
    """All files under version control that are there."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode != 0:
        pytest.skip(f"git cannot list the project's files: {listing.stderr.strip()}")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="session")
def modules() -> dict[str, ast.Module]:
    """The syntax tree of each module of the package, by its dotted name; a package goes by its own name."""
    trees = {}
    for path in sorted((ROOT / "calm_megatron").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return trees


@pytest.fixture(scope="session")
def scripts() -> dict[Path, ast.Module]:
    """The syntax trees of the entry points and of the command lines in tools/."""
    paths = [*ROOT.glob("pretrain_*.py"), *(ROOT / "tools").glob("*.py")]
    return {path: ast.parse(path.read_text(encoding="utf-8"), filename=str(path)) for path in sorted(paths)}
