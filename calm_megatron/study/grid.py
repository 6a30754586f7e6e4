"""A study: a YAML file that spans grids of runs.

files: [examples/machines/cpu.yaml]        # of every run
settings: {data.seq_length: 256}           # of every run, over the files
runs:
  autoencoder:
    files: [examples/study/autoencoder.yaml]
    grid: {model.patch_size: [2, 4]}       # one run for each combination
  energy:
    files: [examples/study/calm.yaml]
    settings: {model.head.type: energy}
    autoencoder: autoencoder               # the one whose place in its grid agrees with this run
    grid: {model.patch_size: [2, 4], run.seed: [1, 2]}
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from calm_megatron.config.errors import UserError
from calm_megatron.config.files import load_run, read_yaml
from calm_megatron.config.schema import RunConfig

Value = bool | int | float | str | None


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class GridOfRuns:
    """Runs that differ in the settings of the grid."""

    files: tuple[str, ...] = ()
    settings: dict[str, Value] = dataclasses.field(default_factory=dict)
    grid: dict[str, Annotated[list[Value], Field(min_length=1)]] = dataclasses.field(default_factory=dict)
    autoencoder: str | None = None
    """Name of the runs that hold the autoencoder of each of these."""

    def points(self) -> Iterator[dict[str, Value]]:
        """Each combination of the grid's values, by setting."""
        for values in itertools.product(*self.grid.values()):
            yield dict(zip(self.grid, values, strict=True))


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class StudyFile:
    """What the YAML holds."""

    runs: Annotated[dict[Annotated[str, Field(pattern=r"^\w+$")], GridOfRuns], Field(min_length=1)]
    files: tuple[str, ...] = ()
    settings: dict[str, Value] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    name: str
    """Of the run, and of its folder."""
    group: str
    """Name of its grid."""
    point: Mapping[str, Value]
    """Its place in the grid."""
    files: tuple[str, ...]
    overrides: tuple[str, ...]
    config: RunConfig
    after: str | None
    """Name of the cell that must have ended: its autoencoder."""

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self.config.run.directory)


def read_study(path: Path, output: Path) -> list[Cell]:
    """All runs of a study, each after its autoencoder; nothing starts before all configs are known to be good.

    Args:
        path: the YAML.
        output: folder that holds the folders of the runs.

    Raises:
        UserError: the file or the config of a run is wrong, or an autoencoder is not to be found.
    """
    study = _parse(path)
    cells: dict[str, Cell] = {}
    for group, runs in sorted(study.runs.items(), key=lambda item: item[1].autoencoder is not None):
        for point in runs.points():
            name = "-".join([group, *(f"{setting.rpartition('.')[2]}_{value}" for setting, value in point.items())])
            settings: dict[str, Value] = {**study.settings, **runs.settings, **point}
            after = (
                _autoencoder_of(runs.autoencoder, settings, cells, f"{path}, runs.{group}")
                if runs.autoencoder
                else None
            )
            if after:
                settings["model.autoencoder"] = str(output / after)
            settings["run.directory"] = str(output / name)
            files = (*study.files, *runs.files)
            overrides = tuple(f"{setting}={_as_yaml(value)}" for setting, value in settings.items())
            cells[name] = Cell(name, group, point, files, overrides, _load(files, overrides, name), after)
    return list(cells.values())


def _parse(path: Path) -> StudyFile:
    try:
        return TypeAdapter(StudyFile).validate_python(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{place or 'the study'}: {first['msg']}", str(path), "see docs/study.md") from None


def _as_yaml(value: Value) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")


def _load(files: tuple[str, ...], overrides: tuple[str, ...], name: str) -> RunConfig:
    try:
        return load_run(files, overrides)
    except UserError as error:
        raise UserError(
            f"the config of a run is wrong: {error.what}", f"run {name}: {error.where}", error.what_to_do
        ) from None


def _autoencoder_of(group: str, settings: Mapping[str, Value], cells: Mapping[str, Cell], where: str) -> str:
    """The one run of a group whose place in its grid agrees with the settings of a CALM."""
    found = [
        cell.name
        for cell in cells.values()
        if cell.group == group
        and all(settings[name] == cell.point[name] for name in settings.keys() & cell.point.keys())
    ]
    if len(found) == 1:
        return found[0]
    problem = f"fits {len(found)} of its runs ({', '.join(found)})" if found else "fits none of its runs"
    to_do = "set here, or in the grid, what the autoencoders differ in"
    raise UserError(f"the autoencoder '{group}' {problem}", where, to_do)


def settings_that_differ(cell: Cell) -> list[str]:
    """Settings of a run whose folder holds others than the study asks for; empty where nothing was started yet."""
    file = cell.folder / "config.yaml"
    if not file.exists():
        return []
    theirs, ours = _leaves(dataclasses.asdict(load_run([file]))), _leaves(dataclasses.asdict(cell.config))
    # A run fills in what is left open, such as the pad's id, which it finds in the data.
    asked = {name for name, value in ours.items() if value is not None}
    return sorted(name for name in asked | (theirs.keys() - ours.keys()) if theirs.get(name) != ours.get(name))


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found
