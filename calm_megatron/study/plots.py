"""Pictures of a study: BrierLM against training FLOPs, and against cross-entropy."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calm_megatron.study.results import LanguageRun, correlation

_COLOURS = ("#0f766e", "#c2703d", "#4f5fb3", "#a23b72", "#6b7684", "#b8860b", "#3f7cac")
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "study", "axes.spines.top": False, "axes.spines.right": False}


def draw(runs: Sequence[LanguageRun], folder: Path) -> list[Path]:
    """Draw what there is to draw; returns the files."""
    files = [_against_flops(runs, folder / "brierlm_flops.svg")]
    baselines = [run for run in runs if run.is_baseline]
    if baselines:
        files.append(_against_cross_entropy(baselines, folder / "brierlm_cross_entropy.svg"))
    return files


def _against_flops(runs: Sequence[LanguageRun], file: Path) -> Path:
    with _axes(file) as axes:
        groups = dict(zip(dict.fromkeys(map(_kind, runs)), itertools.cycle(_COLOURS), strict=False))
        named: set[str] = set()
        for run in runs:
            kind = _kind(run)
            axes.plot(
                [point.flops for point in run.points],
                [point.brierlm for point in run.points],
                color=groups[kind],
                label=None if kind in named else kind,
                linestyle="--" if run.is_baseline else "-",
                marker="o",
                markersize=3.5,
            )
            named.add(kind)
        axes.set_xscale("log")
        axes.set_xlabel("training FLOPs")
        axes.legend(frameon=False)
    return file


def _against_cross_entropy(baselines: Sequence[LanguageRun], file: Path) -> Path:
    found = correlation(baselines)
    with _axes(file) as axes:
        for run, colour in zip(baselines, itertools.cycle(_COLOURS), strict=False):
            losses, scores = [point.loss for point in run.points], [point.brierlm for point in run.points]
            axes.plot(losses, scores, color=colour, linestyle="", marker="o", markersize=4, label=run.cell.name)
        axes.set_xlabel("cross-entropy in nats per token")
        title = "" if found is None else f"Pearson's correlation {found:.3f}"
        axes.legend(frameon=False, title=title)
    return file


def _kind(run: LanguageRun) -> str:
    """The run without its seed: seeds share a colour."""
    point = [f"{name.rpartition('.')[2]} {value}" for name, value in run.cell.point.items() if name != "run.seed"]
    return ", ".join([run.cell.group, *point])


@contextmanager
def _axes(file: Path) -> Iterator[Axes]:
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.add_subplot()
        axes.set_ylabel("BrierLM")
        yield axes
        figure.savefig(file, format="svg", metadata={"Date": None})
