"""The report's charts, as inline SVG that takes its font from the page.

Series are thinned before they are drawn: a page of a million steps stays small.
"""

import io
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

INK, MUTED, RULE = "#1f2a37", "#6b7684", "#e4e3dd"
COLOURS = ("#0f766e", "#c2703d", "#4f5fb3", "#a23b72")
_SIZES = {"large": (5.0, 2.9), "small": (3.1, 2.15)}
_POINTS_DRAWN = 500
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SMALLEST_ERROR = 1e-5
"""Share of wrong tokens that an accuracy of exactly 1 is drawn at: a logarithmic axis has no place for none."""

_STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 7,
    "ytick.major.pad": 5,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.handlelength": 1.4,
    "legend.borderaxespad": 0.0,
}


Size = Literal["large", "small"]


@dataclass(frozen=True)
class Line:
    """One series of a chart."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    drawn: Literal["smoothed", "exactly", "with marks"] = "smoothed"
    """Noisy values of many steps, values that a schedule sets, or few values that were measured."""


@dataclass(frozen=True)
class Interval:
    """One row of a comparison: an estimate and where it may lie."""

    label: str
    value: float
    low: float
    high: float


def curves(title: str, lines: Sequence[Line], size: Size = "large", from_zero: bool = False) -> str:
    """Values over steps, on a logarithmic axis when they span decades.

    Args:
        title: what the chart shows, for readers who cannot see it.
        lines: the series.
        size: how much room the page gives it.
        from_zero: whether the vertical axis must begin at zero, which keeps small changes small.
    """
    drawn = [line for line in map(_finite, lines) if line.values]
    everything = [value for line in drawn for value in line.values]
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figure, axes = _canvas(size)
        for line, colour in zip(drawn, COLOURS, strict=False):
            _draw(axes, line, colour)
        if from_zero:
            axes.set_ylim(0, 1.15 * max(everything) or 1)
            _linear_ticks(axes)
        elif _spans_decades(everything):
            axes.set_yscale("log")
            _plain_log_ticks(axes)
        else:
            _leave_out_outliers(axes, everything)
            _linear_ticks(axes)
        _finish(axes, drawn)
        return _svg(figure, title)


def accuracy_curves(title: str, lines: Sequence[Line]) -> str:
    """Accuracies over steps, on an axis that gives 99 %, 99.9 % and 99.99 % equal room."""
    drawn = [line for line in map(_finite, lines) if line.values]
    errors = [replace(line, values=[max(1 - value, _SMALLEST_ERROR) for value in line.values]) for line in drawn]
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figure, axes = _canvas("large")
        for line, colour in zip(errors, COLOURS, strict=False):
            _draw(axes, line, colour)
        axes.set_yscale("log")
        smallest = min(value for line in errors for value in line.values)
        axes.set_ylim(1.0, 10 ** math.floor(math.log10(smallest) + 1e-9) * 0.8)
        axes.yaxis.set_major_locator(FixedLocator([1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{100 * (1 - error):.6g} %"))
        axes.yaxis.set_minor_locator(NullLocator())
        _finish(axes, drawn)
        return _svg(figure, title)


def robustness(title: str, sigmas: Sequence[float], accuracies: Sequence[float]) -> str:
    """Accuracy against the standard deviation of the noise on the latent."""
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figure, axes = _canvas("large")
        axes.plot(sigmas, accuracies, color=COLOURS[0], marker="o", markersize=4.5, clip_on=False)
        axes.fill_between(sigmas, accuracies, color=COLOURS[0], alpha=0.08, linewidth=0)
        axes.set_ylim(0, 1.0)
        axes.set_xlim(left=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f} %"))
        axes.set_xlabel("standard deviation of the noise on the latent vector")
        return _svg(figure, title)


def intervals(title: str, rows: Sequence[Interval]) -> str:
    """Estimates with their intervals, one below the other; the first is the one that matters."""
    style = _STYLE | {"axes.grid.axis": "x", "axes.spines.bottom": False}
    with matplotlib.rc_context(style):  # type: ignore[arg-type]
        figure, axes = _canvas("large", left=1.0, right=0.5, bottom=0.34)
        largest = max(max(row.high, row.value) for row in rows)
        for position, row in enumerate(rows):
            colour, weight = (COLOURS[0], "bold") if position == 0 else ("#8b95a1", "normal")
            axes.barh(position, row.value, height=0.5, color=colour, alpha=0.22, linewidth=0)
            axes.plot([row.low, row.high], [position, position], color=colour, linewidth=2, clip_on=False)
            axes.plot(row.value, position, marker="o", markersize=6, color=colour, clip_on=False)
            right = max(row.high, row.value, 0) + 0.035 * largest
            axes.text(right, position, f"{row.value:.2f}", va="center", weight=weight)
        axes.set_yticks(range(len(rows)), [row.label for row in rows], color=INK, fontsize=10)
        axes.tick_params(axis="y", pad=10)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(min(0.0, *(row.low for row in rows)), largest * 1.02 or 1.0)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
        return _svg(figure, title)


def _canvas(
    size: Size, left: float = 0.58, right: float = 0.2, bottom: float = 0.48, top: float = 0.3
) -> tuple[Figure, Axes]:
    """A figure and its axes. Margins are fixed, in inches: an automatic layout would measure a font not the page's."""
    width, height = _SIZES[size]
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height))
    axes.margins(x=0.0)
    return figure, axes


def _draw(axes: Axes, line: Line, colour: str) -> None:
    if line.drawn == "with marks":
        axes.plot(line.steps, line.values, color=colour, label=line.label, marker="o", markersize=3.6, clip_on=False)
    elif line.drawn == "exactly":
        axes.plot(*_thinned(line.steps, line.values), color=colour, label=line.label)
    else:
        axes.plot(*_thinned(line.steps, line.values), color=colour, alpha=0.25, linewidth=1.0)
        axes.plot(*_thinned(line.steps, _running_mean(line.values)), color=colour, label=line.label)


def _finite(line: Line) -> Line:
    kept = [(step, value) for step, value in zip(line.steps, line.values, strict=True) if math.isfinite(value)]
    return replace(line, steps=[step for step, _ in kept], values=[value for _, value in kept])


def _running_mean(values: Sequence[float]) -> list[float]:
    """Mean of the neighbourhood of each value, about a fortieth of the series wide, cut at its ends."""
    sums = [0.0, *itertools.accumulate(values)]
    reach = len(values) // 80
    means = []
    for place in range(len(values)):
        first, behind = max(place - reach, 0), min(place + reach + 1, len(values))
        means.append((sums[behind] - sums[first]) / (behind - first))
    return means


def _thinned(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means of equal runs of points, so that at most `_POINTS_DRAWN` remain."""
    size = math.ceil(len(steps) / _POINTS_DRAWN)
    starts = range(0, len(steps), size)
    return (
        [math.fsum(steps[start : start + size]) / len(steps[start : start + size]) for start in starts],
        [math.fsum(values[start : start + size]) / len(values[start : start + size]) for start in starts],
    )


def _spans_decades(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) / min(values) > 30


def _leave_out_outliers(axes: Axes, values: Sequence[float]) -> None:
    """Let the first spikes of a run leave the picture rather than flatten the rest of it."""
    if len(values) < 50:
        return
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 200], ordered[-1 - len(ordered) // 100]
    room = 0.08 * (high - low) or 0.5 * abs(high) or 1.0
    axes.set_ylim(max(low - room, min(ordered[0], 0.0)) if low >= 0 else low - room, high + room)


def _plain_log_ticks(axes: Axes) -> None:
    low, high = axes.get_ylim()
    decades = math.log10(high / low)
    factors = (1,) if decades > 3 else (1, 3) if decades > 1.6 else (1, 2, 5)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**exponent for exponent in exponents for factor in factors]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(low, high)


def _linear_ticks(axes: Axes) -> None:
    """Round figures; very small ones are given in units of a power of ten, which stands above the axis."""
    largest = max(map(abs, axes.get_ylim()))
    exponent = math.floor(math.log10(largest)) if 0 < largest < 0.01 else 0
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value * 10.0**-exponent)))
    if exponent:
        unit = f"× 10{str(exponent).translate(_SUPERSCRIPT)}"
        axes.text(0, 1.05, unit, transform=axes.transAxes, ha="left", va="bottom", color=MUTED, fontsize=9)


def _finish(axes: Axes, lines: Sequence[Line]) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axes.set_xlabel("step")
    axes.set_xlim(0, max(line.steps[-1] for line in lines))
    if len(lines) > 1:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1.02), ncols=len(lines), columnspacing=1.4)


def _tick(value: float) -> str:
    """A tick: `0.003`, `250`, `20k`, `1e-05`."""
    if value != 0 and not 1e-3 <= abs(value) < 1e12:
        return f"{value:.0e}"
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 1e4):
            return f"{value / size:.4g}{letter}"
    return f"{value:.6g}"


def _svg(figure: Figure, title: str) -> str:
    """The figure as an `<svg>` element that the page scales, and that can lie beside others of other titles."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[0-9.]+pt"', "", text, count=2)
    used = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda found: found.group(0) if found.group(1) in used else "", text)
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
