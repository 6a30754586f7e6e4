"""Which charts the report shows of a run, and from which values of its log."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from calm_megatron.telemetry import plots
from calm_megatron.telemetry.run_folder import RunFolder
from calm_megatron.telemetry.run_log import RunLog


@dataclass(frozen=True)
class Chart:
    """A chart, its title and a sentence on how to read it."""

    title: str
    note: str
    svg: str


def autoencoder(run: RunFolder) -> list[Chart]:
    """Loss, its parts, held-out accuracy and robustness."""
    charts = []
    if run.log is not None:
        names = {"autoencoder/cross_entropy": "cross-entropy", "autoencoder/kl": "KL"}
        charts += _loss(run, run.log, "Loss", "Reconstruction and weighted KL.")
        charts += _terms(run, run.log, "Parts of the loss", "Reconstruction, and distance from the prior.", names)
        charts += _accuracy(run.log)
    points = (run.evaluation or {}).get("robustness") or []
    if points:
        sigmas, accuracies = [point["sigma"] for point in points], [point["token_accuracy"] for point in points]
        title = "Robustness of the latent"
        note = "Tokens still reconstructed when noise is added to the latent vector."
        charts.append(Chart(title, note, plots.robustness(title, sigmas, accuracies)))
    return charts


def calm(run: RunFolder) -> list[Chart]:
    """The head's loss and its terms."""
    if run.log is None:
        return []
    loss, note, terms, terms_note, names = _HEADS[(run.setting("model", "head") or {}).get("type", "energy")]
    return [*_loss(run, run.log, loss, note), *_terms(run, run.log, terms, terms_note, names)]


_HEADS = {
    "energy": (
        "Energy loss",
        "Negative energy score; lower is better.",
        "Terms of the energy score",
        "Distances in latent space.",
        {"energy/distance_targets": "to the target", "energy/distance_samples": "among samples"},
    ),
    "diffusion": (
        "Diffusion loss",
        "Squared error of the noise, and the bound.",
        "Terms of the diffusion loss",
        "A head that says nothing has a squared error of one.",
        {"diffusion/noise_error": "squared error", "diffusion/variational_bound": "bound, bits a dimension"},
    ),
    "flow": (
        "Flow-matching loss",
        "Squared error of the velocity.",
        "Velocities",
        "Their mean square is the loss of a head that says nothing.",
        {"flow/velocity_square": "mean square", "loss": "squared error"},
    ),
}
"""By head: title and note of the chart of the loss and of that of its terms, and the labels of these."""


def pace(run: RunFolder) -> list[Chart]:
    """Gradient norm, learning rate, throughput: small charts."""
    if run.log is None:
        return []
    norm, speed = _line(run.log, "grad_norm", ""), _line(run.log, "speed/tokens_per_second", "")
    rate = replace(_line(run.log, "learning_rate", ""), drawn="exactly")
    return [
        *_chart(run, "Gradient norm", "Before clipping.", [norm], "small"),
        *_chart(run, "Learning rate", "As scheduled.", [rate], "small"),
        *_chart(run, "Throughput", "Tokens a second.", [speed], "small", from_zero=True),
    ]


def score(run: RunFolder, models: Mapping[str, Mapping[str, Any]]) -> list[Chart]:
    """BrierLM of each model with its interval, and how it grew in training."""
    rows = [
        plots.Interval(name, found["brierlm"], found["brierlm_low"], found["brierlm_high"])
        for name, found in models.items()
    ]
    title = "BrierLM beside its baselines" if len(rows) > 1 else "BrierLM and its interval"
    note = "At the end of training; dots are estimates, lines intervals."
    charts = [Chart(title, note, plots.intervals(title, rows))]
    if run.log is not None:
        line = plots.Line("", *run.log.series("brierlm", "validation"), drawn="with marks")
        charts += _chart(run, "BrierLM while training", "On validation text.", [line], from_zero=True)
    return charts


def _loss(run: RunFolder, log: RunLog, title: str, note: str) -> list[Chart]:
    lines = [_line(log, "loss", "training")]
    steps, values = log.series("loss", "validation")
    if steps:
        lines.append(plots.Line("validation", steps, values, drawn="with marks"))
    return _chart(run, title, note, lines)


def _terms(run: RunFolder, log: RunLog, title: str, note: str, names: Mapping[str, str]) -> list[Chart]:
    return _chart(run, title, note, [_line(log, name, label) for name, label in names.items()])


def _accuracy(log: RunLog) -> list[Chart]:
    names = {"token_accuracy_mean": "posterior mean", "token_accuracy_sample": "posterior sample"}
    lines = [plots.Line(label, *log.series(name, "validation"), drawn="with marks") for name, label in names.items()]
    if not _has_values(lines):
        return []
    title = "Reconstructed tokens"
    return [Chart(title, "Share of validation tokens that come back right.", plots.accuracy_curves(title, lines))]


def _chart(
    run: RunFolder,
    title: str,
    note: str,
    lines: Sequence[plots.Line],
    size: plots.Size = "large",
    from_zero: bool = False,
) -> list[Chart]:
    """The chart, in a list; an empty list when nothing of it was recorded."""
    if not _has_values(lines):
        return []
    # Both runs have a chart of their learning rate, and a reader who cannot see where it stands must tell them apart.
    return [Chart(title, note, plots.curves(f"{title}, {run.task}", lines, size, from_zero))]


def _has_values(lines: Sequence[plots.Line]) -> bool:
    return any(math.isfinite(value) for line in lines for value in line.values)


def _line(log: RunLog, name: str, label: str) -> plots.Line:
    return plots.Line(label, *log.series(name))
