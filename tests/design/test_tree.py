"""Small rules of the house, held on every file under version control."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

LONGEST_FILE = 450
ONE_FILE = "calm_megatron/release/modeling_calm.py"
"""Travels alone, so it holds a whole model."""
PROMISES = re.compile("|".join(rf"\b{word}\b" for word in ("TO" + "DO", "FIX" + "ME", "X" + "XX")))
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:work|farm|root|home|tmp)/\w|\.\./" + "shared")
"""Places that exist on one machine only. A path within a URL or another folder does not count."""


def python_files(tracked: list[Path]) -> list[Path]:
    """The Python files among them; the fixture's promise that there are some."""
    files = [path for path in tracked if path.suffix == ".py"]
    assert files
    return files


def texts(tracked: list[Path]) -> dict[Path, str]:
    """Contents of the files that are text, by path from the root; the licence is not ours to judge."""
    found = {}
    for path in tracked:
        content = path.read_bytes()
        if b"\0" not in content and path.name != "LICENSE":
            found[path.relative_to(ROOT)] = content.decode("utf-8")
    return found


def places(pattern: re.Pattern[str], tracked: list[Path]) -> list[str]:
    """Where a pattern occurs, as file:line: text."""
    return [
        f"{path}:{number}: {line.strip()}"
        for path, text in texts(tracked).items()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def test_files_are_of_one_thought(tracked: list[Path]) -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in python_files(tracked)}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE and name != ONE_FILE} == {}


def test_modules_say_what_they_are_for(tracked: list[Path]) -> None:
    trees = {path: ast.parse(path.read_text()) for path in python_files(tracked)}
    assert [str(path.relative_to(ROOT)) for path, tree in trees.items() if not ast.get_docstring(tree)] == []


def test_nothing_is_promised_in_comments(tracked: list[Path]) -> None:
    assert places(PROMISES, tracked) == []


def test_no_path_of_one_machine(tracked: list[Path]) -> None:
    assert places(MACHINE_PATHS, tracked) == []


def test_every_test_can_fail(tracked: list[Path]) -> None:
    files = [path for path in python_files(tracked) if path.name.startswith("test_")]
    assert [f"{path.relative_to(ROOT)} {name}" for path in files for name in hollow(path.read_text())] == []


def hollow(source: str) -> list[str]:
    """Tests that assert nothing: not themselves, nor by pytest's or torch's functions, nor by the file's helpers."""
    functions = {node.name: node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}
    checking: set[str] = set()
    while more := {name for name, node in functions.items() if name not in checking and checks(node, checking)}:
        checking |= more
    return [name for name in functions if name.startswith("test_") and name not in checking]


def checks(function: ast.FunctionDef, helpers: set[str]) -> bool:
    """Whether a function asserts something, or calls one of the helpers that do."""
    calls = {ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
    return (
        any(isinstance(node, ast.Assert) for node in ast.walk(function))
        or not calls.isdisjoint(helpers)
        or any(re.search(r"^pytest\.(raises|warns)$|(^|\.)assert_\w+$", call) for call in calls)
    )


def test_the_rules_see_what_they_forbid() -> None:
    assert PROMISES.search("# TO" + "DO: later")
    assert not PROMISES.search("to do: choose another")
    assert MACHINE_PATHS.search("open('/" + "tmp/x')")
    assert not MACHINE_PATHS.search("https://example.org/home/x")
    assert hollow("def test_a():\n f()\ndef f():\n g()\ndef g():\n return 1") == ["test_a"]
    assert hollow("def test_a():\n f()\ndef f():\n g()\ndef g():\n assert h()") == []
