"""Imports point one way: the order of the rooms, no cycles, no torch where plans are read, quick command lines."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PACKAGE = "calm_megatron"
ROOT = Path(__file__).resolve().parents[2]

ORDER = {
    "config": set(),
    "losses": set(),
    "plan": {"config"},
    "launch": {"config", "plan"},
    "data": {"config"},
    "parallel": {"config"},
    "model": {"config", "parallel", "losses"},
    "generate": {"config", "model"},
    "evaluate": {"config", "parallel", "data", "losses", "model", "generate"},
    "checkpoint": {"config", "parallel", "model"},
    "telemetry": {"config", "plan", "parallel"},
    "study": {"config", "plan", "telemetry"},
    "release": {"config", "losses", "data", "parallel", "model", "checkpoint"},
}
ORDER["train"] = set(ORDER)
"""What each room may import beside itself. A room that is not here does not exist."""

HEAVY = ("torch", "deepspeed", "megatron")
"""What takes seconds to import."""


def imported(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Dotted name and statement of each import; `from a import b` gives a.b, which may be a module or a name in a."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"line {node.lineno}: imports are written from the root"
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def room(name: str) -> str:
    """The sub-package of a dotted name of ours."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def import_elsewhere(code: str) -> list[str]:
    """Which of the heavy packages a fresh interpreter holds after `code`."""
    code += f"\nimport sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_every_room_has_its_place_in_the_order() -> None:
    rooms = {path.parent.name for path in (ROOT / PACKAGE).glob("*/__init__.py")}
    assert rooms == set(ORDER)


def test_the_order_itself_is_one_way() -> None:
    assert list(graphlib.TopologicalSorter(ORDER).static_order())[-1] == "train"


def test_rooms_import_what_lies_before_them(modules: dict[str, ast.Module]) -> None:
    wrong = [
        f"{module}:{statement.lineno} imports {name}: {room(module)} may import {sorted(ORDER[room(module)])}"
        for module, tree in modules.items()
        for name, statement in imported(tree)
        if name.split(".")[0] == PACKAGE and room(name) not in ORDER.get(room(module), set()) | {room(module)}
    ]
    assert not wrong, "\n".join(wrong)


def test_the_package_knows_nothing_of_its_command_lines(modules: dict[str, ast.Module]) -> None:
    outside = {"pretrain_ae", "pretrain_calm", "tools", "tests", "benchmarks"}
    wrong = [
        f"{module} imports {name}"
        for module, tree in modules.items()
        for name, _ in imported(tree)
        if name.split(".")[0] in outside
    ]
    assert not wrong, "\n".join(wrong)


def test_modules_have_no_cycle(modules: dict[str, ast.Module]) -> None:
    graph: dict[str, set[str]] = {}
    for module, tree in modules.items():
        names = [name for name, _ in imported(tree)]
        found = {name if name in modules else name.rpartition(".")[0] for name in names}
        graph[module] = (found & set(modules)) - {module}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert len(order) == len(modules)


def test_packages_hold_no_code(modules: dict[str, ast.Module]) -> None:
    packages = [name for name in modules if any(other.startswith(f"{name}.") for other in modules)]
    wrong = [
        f"{package}/__init__.py:{statement.lineno}"
        for package in packages
        for statement in modules[package].body
        if not isinstance(statement, (ast.Import, ast.ImportFrom))
        and not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
    ]
    assert not wrong, f"code in a package's __init__: {wrong}"


@pytest.mark.parametrize("name", ["config", "plan", "launch"])
def test_planners_and_launchers_need_no_torch(name: str, modules: dict[str, ast.Module]) -> None:
    package = f"{PACKAGE}.{name}"
    names = [module for module in modules if f"{module}.".startswith(f"{package}.")]
    assert package in names
    assert import_elsewhere("\n".join(f"import {module}" for module in names)) == []


def test_command_lines_import_heavy_parts_late(scripts: dict[Path, ast.Module]) -> None:
    # Loading a script by its path runs its top level, but not the part behind `if __name__ == "__main__"`.
    load = "import runpy, sys; sys.path.insert(0, '.')"
    slow = {
        path.name: import_elsewhere(f"{load}\nrunpy.run_path({str(path)!r}, run_name='script')") for path in scripts
    }
    assert {name: held for name, held in slow.items() if held} == {}


def test_late_imports_say_why(modules: dict[str, ast.Module], scripts: dict[Path, ast.Module]) -> None:
    trees = [*scripts.items(), *((path_of(name), tree) for name, tree in modules.items())]
    wrong = [f"{path.relative_to(ROOT)}:{line}" for path, tree in trees for line in unexplained(path, tree)]
    assert not wrong, f"a comment at a late import, or the function's docstring, says why it is late: {wrong}"


def path_of(module: str) -> Path:
    """The file of a dotted name."""
    path = ROOT / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def unexplained(path: Path, tree: ast.Module) -> Iterator[int]:
    """Lines of the imports inside functions that neither a comment nor the function's docstring explains."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for function in ast.walk(tree):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if "import" in (ast.get_docstring(function) or ""):
            continue
        for _, statement in imported(function):
            above = statement.lineno - 2
            if "#" in lines[above + 1]:
                continue
            # One comment serves a block of imports, also when it stands above their `with` or `try`.
            while lines[above].strip().startswith(("from ", "import ", "with ", "try:")) or not lines[above].strip():
                above -= 1
            if not lines[above].strip().startswith("#"):
                yield statement.lineno


def test_every_import_is_a_declared_requirement(
    modules: dict[str, ast.Module], scripts: dict[Path, ast.Module]
) -> None:
    declared = {requirement.lower() for requirement in runtime_requirements()}
    of_package = packages_distributions()
    missing = set()
    # Looked for, and done without: triton comes with torch for GPUs, and apex, whose extension amp_C is, is built.
    optional = {"amp_C", "apex", "triton"}
    # What travels with a release is run where that is loaded.
    trees = [tree for name, tree in modules.items() if name != "calm_megatron.release.modeling_calm"]
    for tree in [*trees, *scripts.values()]:
        for name, _ in imported(tree):
            top = name.split(".")[0]
            if top in {PACKAGE, *optional} or top in sys.stdlib_module_names:
                continue
            if not declared & {distribution.lower() for distribution in of_package.get(top, [])}:
                missing.add(top)
    assert not missing, f"imported, but not among the requirements of setup.py: {sorted(missing)}"


def runtime_requirements() -> list[str]:
    """Names of the packages that setup.py asks for."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    lists = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "RUNTIME"
    ]
    return [requirement.split("=")[0].split(">")[0].split("<")[0] for requirement in ast.literal_eval(lists[0])]
