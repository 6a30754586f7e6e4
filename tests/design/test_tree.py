"""Small rules of the house, held on every file under version control."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

LONGEST_FILE = 450
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
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_modules_say_what_they_are_for(tracked: list[Path]) -> None:
    trees = {path: ast.parse(path.read_text()) for path in python_files(tracked)}
    assert [str(path.relative_to(ROOT)) for path, tree in trees.items() if not ast.get_docstring(tree)] == []


def test_nothing_is_promised_in_comments(tracked: list[Path]) -> None:
    assert places(PROMISES, tracked) == []


def test_no_path_of_one_machine(tracked: list[Path]) -> None:
    assert places(MACHINE_PATHS, tracked) == []


def test_every_test_can_fail(tracked: list[Path]) -> None:
    hollow = [
        f"{path.relative_to(ROOT)}:{function.lineno} {function.name}"
        for path in python_files(tracked)
        if path.name.startswith("test_")
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef) and function.name.startswith("test_") and not checks(function)
    ]
    assert hollow == []


def checks(function: ast.FunctionDef) -> bool:
    """Whether a test asserts something: itself, by `pytest.raises`, or by a helper that is called for that."""
    return any(
        isinstance(node, ast.Assert)
        or (isinstance(node, ast.Call) and re.search(r"(^|\.)(raises|warns|_?assert_\w+)$", ast.unparse(node.func)))
        for node in ast.walk(function)
    )


def test_the_rules_see_what_they_forbid(tmp_path: Path) -> None:
    assert PROMISES.search("# TO" + "DO: later")
    assert not PROMISES.search("to do: choose another")
    assert MACHINE_PATHS.search("open('/" + "tmp/x')")
    assert not MACHINE_PATHS.search("https://example.org/home/x")
    (hollow, sound) = ast.parse("def test_a():\n  f()\ndef test_b():\n  assert f()").body
    assert isinstance(hollow, ast.FunctionDef) and not checks(hollow)
    assert isinstance(sound, ast.FunctionDef) and checks(sound)
