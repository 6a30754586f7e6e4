"""What a finished run left in its folder, read from its files alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import yaml

from calm_megatron.config.errors import UserError
from calm_megatron.telemetry.files import read_json
from calm_megatron.telemetry.run_log import FILE_NAME, RunLog, read_log

Task = Literal["autoencoder", "calm"]
Content = TypeVar("Content", dict[str, Any], list[Any])
_SCORE = ("brierlm", "brierlm_low", "brierlm_high", "brier")
_NEEDED = {"autoencoder": ("token_accuracy_sample", "token_accuracy_mean", "latent_size"), "calm": ("loss",)}


@dataclass(frozen=True)
class RunFolder:
    """The files of a run; what is missing is none, or empty."""

    task: Task
    directory: Path
    config: Mapping[str, Any]
    log: RunLog | None
    evaluation: Mapping[str, Any] | None
    baselines: Mapping[str, Mapping[str, Any]]
    """Scores of models that CALM must beat, by name: `untrained`, `unigram`."""
    samples: tuple[Mapping[str, Any], ...]

    @property
    def score(self) -> Mapping[str, Any] | None:
        """The evaluation, if BrierLM and its interval are in it; there are none for K < 4 or a single sequence."""
        found = self.evaluation or {}
        return found if all(found.get(name) is not None for name in _SCORE) else None

    def setting(self, section: str, name: str) -> Any:
        """A value of the run's config, or none."""
        return (self.config.get(section) or {}).get(name)


def read_run(task: Task, directory: Path, evaluation: Path | None = None) -> RunFolder:
    """Read a run's folder.

    Args:
        task: what was trained there.
        directory: the folder.
        evaluation: an evaluation that lies elsewhere; none takes the folder's `evaluation.json`, if there is one.

    Raises:
        UserError: when the folder or the named evaluation is missing, a file is damaged, or the evaluation is of
            the other task.
    """
    if not directory.is_dir():
        raise UserError(f"the folder of the {task} run does not exist", str(directory), "name a run.directory")
    if evaluation is not None and not evaluation.is_file():
        raise UserError("there is no such evaluation", str(evaluation), "name a file that tools/evaluate.py wrote")
    log = directory / FILE_NAME
    return RunFolder(
        task=task,
        directory=directory,
        config=_read_config(directory / "config.yaml"),
        log=read_log(log) if log.is_file() else None,
        evaluation=_read_evaluation(task, evaluation or directory / "evaluation.json"),
        baselines=_read_baselines(directory / "baselines.json"),
        samples=_read_samples(directory / "samples.json"),
    )


def _read_evaluation(task: Task, path: Path) -> Mapping[str, Any] | None:
    evaluation = _optional(path, dict)
    if evaluation is not None and evaluation.get("task") != task:
        raise UserError(
            f"this is an evaluation of {evaluation.get('task')!r}, and one of {task!r} is needed",
            str(path),
            "check that the two runs are not exchanged",
        )
    if evaluation is not None:
        _refuse_gaps(evaluation, _NEEDED[task], str(path))
    return evaluation


def _read_baselines(path: Path) -> Mapping[str, Mapping[str, Any]]:
    baselines = _optional(path, dict) or {}
    for name, found in baselines.items():
        _demand(found, dict, f"{path}, {name}")
        _refuse_gaps(found, _SCORE, f"{path}, {name}")
    return baselines


def _read_samples(path: Path) -> tuple[Mapping[str, Any], ...]:
    samples = _optional(path, list) or []
    for number, sample in enumerate(samples):
        _demand(sample, dict, f"{path}, sample {number}")
    return tuple(samples)


def _refuse_gaps(found: Mapping[str, Any], needed: tuple[str, ...], where: str) -> None:
    if missing := [name for name in needed if found.get(name) is None]:
        again = "evaluate the run again with tools/evaluate.py"
        raise UserError(f"this evaluation gives no {', '.join(missing)}", where, again)


def _read_config(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        again = "restore the config that the run saved"
        raise UserError(f"this file is not valid YAML: {error}", str(path), again) from error
    return config if isinstance(config, dict) else {}


def _optional(path: Path, kind: type[Content]) -> Content | None:
    """The content of a file of ours, which is an object or a list; none if there is no such file."""
    if not path.is_file():
        return None
    found = read_json(path)
    _demand(found, kind, str(path))
    return cast(Content, found)


def _demand(found: object, kind: type, where: str) -> None:
    if not isinstance(found, kind):
        wanted = "an object" if kind is dict else "a list"
        again = "make it again with the tool that wrote it"
        raise UserError(f"this is not {wanted}, as a run writes it", where, again)
