"""Read a run from YAML files and the command line, strictly; write it back whole.

A run is a model file and a machine file (any number of files that speak of different things) and settings
`section.key=value`. Two files that set the same key contradict each other and are refused; the command line overrides
the files, once per key.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from calm_megatron.config.checks import check
from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import RunConfig

Tree = dict[str, Any]

T = typing.TypeVar("T")

_YAML12_FLOAT = re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?$|^[-+]?\.inf$|^\.nan$")


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice in one mapping, and reads 3e-4 as a number as YAML 1.2 does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                break  # refused below
            if key in seen:
                line = key_node.start_mark.line + 1
                raise UserError(f"the setting '{key}' is given twice", f"{self.name}, line {line}", "keep one of them")
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes the strings which the loader would read as numbers, such as '1e5'."""


# Integers match the float pattern too; their resolver comes first, so only what it leaves becomes a float.
for _class in (_StrictLoader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _YAML12_FLOAT, list("-+0123456789."))


def load_run(files: Sequence[str | Path], overrides: Sequence[str] = ()) -> RunConfig:
    """Build and check a run from YAML files and `section.key=value` settings.

    Raises:
        UserError: for a missing file, YAML that does not parse, an unknown or repeated key, a wrong value, or
            settings that contradict each other.
    """
    return parse_run(merge(files, overrides), ", ".join(map(str, files)) or "the command line")


def merge(files: Sequence[str | Path], overrides: Sequence[str] = ()) -> Tree:
    """The settings of YAML files, and those of the command line over them, as plain values.

    Raises:
        UserError: for a missing file, YAML that does not parse, or a repeated key.
    """
    tree: Tree = {}
    origin: dict[str, str] = {}
    for file in files:
        for path, value in _leaves(read_yaml(Path(file))):
            if path in origin:
                raise UserError(
                    f"'{path}' is set by two files",
                    f"{origin[path]} and {file}",
                    f"keep it in one of them, or override both with {path}=value on the command line",
                )
            if value != {}:
                origin[path] = str(file)
            _put(tree, path, value, str(file))
    seen: set[str] = set()
    for text in overrides:
        path, value = _parse_override(text)
        if path in seen:
            raise UserError(f"'{path}' is given twice on the command line", text, "keep one of them")
        seen.add(path)
        _put(tree, path, value, "the command line")
    return tree


def parse_run(tree: Tree, where: str) -> RunConfig:
    """Turn a tree of plain values into a checked `RunConfig`; `where` names its source in messages."""
    config = build(RunConfig, tree, where, "see examples/ and docs/config.md for every setting")
    check(config)
    return config


def build(cls: type[T], tree: Tree, where: str, what_to_do: str) -> T:
    """Turn a tree of plain values into a dataclass of sections.

    Raises:
        UserError: names every setting that is unknown, missing or of the wrong type.
    """
    try:
        return TypeAdapter(cls).validate_python(tree)
    except ValidationError as error:
        problems = [_explain(detail, cls) for detail in error.errors(include_url=False)]
        raise UserError("\n".join(problems), where, what_to_do) from None


def to_tree(config: Any) -> Tree:
    """The dataclass as plain dictionaries, lists and scalars, every field written out."""
    return typing.cast(Tree, _plain(dataclasses.asdict(config)))


def to_yaml(config: RunConfig) -> str:
    """The whole run as YAML that `load_run` reads back to an equal config."""
    return yaml.dump(to_tree(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> Tree:
    """A mapping, strictly: a key given twice is refused.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            tree = yaml.load(stream, Loader=_StrictLoader)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        raise UserError("there is no such config file", str(path), f"did you mean {near[0]}?" if near else "") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the config file cannot be read: {error}", str(path)) from None
    except yaml.YAMLError as error:
        raise UserError(f"the config file is not valid YAML: {error}", str(path)) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError("a config file holds sections of settings", str(path), "write `section:` and `key: value`")
    return tree


def _parse_override(text: str) -> tuple[str, Any]:
    path, equals, raw = text.partition("=")
    if not equals or "." not in path:
        raise UserError(f"'{text}' is no setting", "the command line", "write section.key=value")
    try:
        return path.strip(), yaml.load(raw, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise UserError(f"the value of '{path}' does not parse: {error}", text) from None


def _leaves(tree: Tree, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Path and value of each setting; an empty section, also one that is written `section:`, gives {}."""
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{path}.")
        else:
            yield path, {} if value is None and not prefix else value


def _put(tree: Tree, path: str, value: Any, where: str) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"'{path}' needs '{parent}' to be a section, but it holds {child!r}", where)
        tree = child
    if value == {}:
        tree.setdefault(last, {})  # an empty section takes nothing back
    else:
        tree[last] = value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _explain(detail: Any, cls: type) -> str:
    """One line for one of pydantic's complaints, with the nearest valid name where a name is wrong."""
    location = list(detail["loc"])
    # pydantic names the kinds that it took by their tags.
    model_type = str(location.pop(1)) if location[0] == "model" and len(location) > 1 else None
    head_type = str(location.pop(2)) if location[:2] == ["model", "head"] and len(location) > 2 else None
    path = ".".join(map(str, location))
    kind, given = detail["type"], detail["input"]
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return _explain_unknown(path, cls, {"model": model_type, "model.head": head_type})
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"'{path}' is required and not set"
    if kind == "union_tag_not_found":
        return f"'{path}.type' is required: {detail['ctx']['discriminator']} names the kind of {path}"
    hint = ""
    if kind in ("literal_error", "union_tag_invalid"):
        expected = re.findall(r"'([^']+)'", str(detail["ctx"].get("expected") or detail["ctx"].get("expected_tags")))
        tag = str(given.get("type")) if isinstance(given, dict) else str(given)
        near = difflib.get_close_matches(tag, expected, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        given = tag
    return f"'{path}' cannot be {given!r}: {detail['msg'][0].lower()}{detail['msg'][1:]}{hint}"


def _explain_unknown(path: str, cls: type, kinds: Mapping[str, str | None]) -> str:
    known = list(setting_names(cls, kinds=kinds))
    section, _, name = path.rpartition(".")
    siblings = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == section]
    near = difflib.get_close_matches(name, siblings, n=1)
    elsewhere = [other for other in known if other.rpartition(".")[2] == name]
    problem = f"there is no setting '{path}'"
    if kind := kinds.get(section) or kinds.get("model"):
        problem += f" for a {'head' if kinds.get(section) and section == 'model.head' else 'model'} of type '{kind}'"
    if elsewhere:
        return f"{problem}; did you mean '{elsewhere[0]}'?"
    if near:
        return f"{problem}; did you mean '{f'{section}.' if section else ''}{near[0]}'?"
    return f"{problem}; '{section or 'the run'}' knows: {', '.join(sorted(set(siblings)))}"


def setting_names(cls: Any, prefix: str = "", kinds: Mapping[str, str | None] | None = None) -> Iterable[str]:
    """Every `section.key` of a config dataclass; of a section of several kinds the one in `kinds`, or all."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        path = f"{prefix}{field.name}"
        nested = [kind for kind in _members(hints[field.name]) if dataclasses.is_dataclass(kind)]
        yield path
        for kind in nested:
            if (kinds or {}).get(path) in (None, getattr(kind, "type", None)):
                yield from setting_names(kind, f"{path}.", kinds)


def _members(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) is typing.Annotated:
        return _members(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)
