"""Writes the tables of docs/config.md from the schema: `python -m calm_megatron.config.docs docs/config.md`.

The docstring behind a field is its meaning there, so that the page cannot tell anything else than the code.
"""

import argparse
import ast
import dataclasses
import inspect
import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calm_megatron.config import schema
from calm_megatron.config.errors import UserError, run_command_line

MARKER = "<!-- Below: written from schema.py by `python -m calm_megatron.config.docs docs/config.md` -->\n"

_PLAIN = {bool: "true or false", int: "whole number", float: "number", str: "text", type(None): "null"}
_TABLE_HEAD = ("| setting | type | default | meaning |", "|---|---|---|---|")
_BOUNDS = (
    ("ge", "at least {}"),
    ("gt", "above {}"),
    ("le", "at most {}"),
    ("lt", "below {}"),
)


def tables() -> str:
    """Markdown of all settings, a table for each section."""
    return "\n".join(_table(path, section) for path, section in _sections(schema.RunConfig, ""))


def with_tables(page: str) -> str:
    """The page with everything behind the marker written anew.

    Raises:
        UserError: the page has no marker.
    """
    head, marker, _ = page.partition(MARKER)
    if not marker:
        raise UserError("the page does not say where the tables begin", "", f"put this line there:\n{MARKER}")
    return f"{head}{MARKER}\n{tables()}"


def _sections(cls: type, path: str) -> Iterator[tuple[str, type]]:
    """Every section with its path, in the order of the schema; a model and its head come in several types."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        inner = f"{path}{field.name}"
        for kind in _alternatives(hints[field.name]):
            if dataclasses.is_dataclass(kind):
                yield inner, typing.cast(type, kind)
                yield from _sections(typing.cast(type, kind), f"{inner}.")


def _table(path: str, section: type) -> str:
    meanings, hints = _docstrings(section), typing.get_type_hints(section, include_extras=True)
    kind = next((field.default for field in dataclasses.fields(section) if field.name == "type"), None)
    title = f"`{path}`" + (f" of type `{kind}`" if kind else "")
    lines = [f"## {title}", "", str(inspect.getdoc(section)), "", *_TABLE_HEAD]
    for field in dataclasses.fields(section):
        if any(dataclasses.is_dataclass(kind) for kind in _alternatives(hints[field.name])):
            continue
        cells = (f"`{path}.{field.name}`", _type(hints[field.name]), _default(field), meanings.get(field.name, ""))
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _docstrings(section: type) -> dict[str, str]:
    """The string behind each field of a class, on one line."""
    (tree,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, behind in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = inspect.cleandoc(str(behind.value.value)).replace("\n", " ")
    return found


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) is typing.Annotated:
        return _alternatives(typing.get_args(hint)[0])
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _type(hint: Any) -> str:
    """The type in words, with its bounds."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return ", ".join([_type(arguments[0]), *_bounds(arguments[1:])])
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(map(_type, arguments))
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        count = "list" if arguments[-1] is Ellipsis else f"list of {len(arguments)}"
        return f"{count}: {_type(arguments[0])}"
    return _PLAIN[hint]


def _bounds(fields: tuple[Any, ...]) -> Iterator[str]:
    for bound in (bound for field in fields for bound in field.metadata):
        for attribute, words in _BOUNDS:
            if hasattr(bound, attribute):
                yield words.format(getattr(bound, attribute))


def _default(field: "dataclasses.Field[Any]") -> str:
    return "required" if field.default is dataclasses.MISSING else f"`{json.dumps(field.default)}`"


def main() -> None:
    """Rewrite the page."""
    parser = argparse.ArgumentParser(description="Write the tables of settings into docs/config.md, from the schema.")
    parser.add_argument("page", type=Path, help="the page; what stands behind its marker is replaced")
    page: Path = parser.parse_args().page
    page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    run_command_line(main)
