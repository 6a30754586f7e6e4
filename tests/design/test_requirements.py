"""setup.py says what the code needs, requirements-cpu.txt what it is tested with: the two agree."""

import ast
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


def constants() -> dict[str, object]:
    """The literal constants of setup.py."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    return {
        ast.unparse(node.targets[0]): ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)
    }


def needed() -> list[str]:
    """What the package and its development need."""
    found = constants()
    return [*found["RUNTIME"], *found["EXTRAS"]["dev"]]


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = (ROOT / "requirements-cpu.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    exact = {}
    for requirement in requirements:
        (specifier,) = requirement.specifier
        assert specifier.operator == "==" and "*" not in specifier.version, f"{requirement} is not exact"
        exact[canonicalize_name(requirement.name)] = specifier.version
    assert len(exact) == len(requirements), "a package is pinned twice"
    return exact


@pytest.mark.parametrize("line", needed())
def test_requirements_are_pinned_within_their_bounds(line: str, pins: dict[str, str]) -> None:
    requirement = Requirement(line)
    assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])
