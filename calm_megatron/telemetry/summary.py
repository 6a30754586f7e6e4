"""`summary.json`: the outcome of an autoencoder and its CALM for programs."""

import math
import statistics
from pathlib import Path
from typing import Any

import orjson

from calm_megatron.config.atomic import write_output
from calm_megatron.config.errors import UserError
from calm_megatron.telemetry.run_folder import RunFolder, read_run
from calm_megatron.telemetry.run_log import RunLog


def build_summary(autoencoder_run: Path, calm_run: Path) -> dict[str, Any]:
    """Collect the figures of both runs.

    Returns:
        `ae_token_accuracy` (posterior sample), `ae_token_accuracy_mean` and `ae_robustness` on held-out text,
        `ae_collapsed_dimensions`; `brierlm` with `brierlm_low`, `brierlm_high` and their `confidence`, `brier` (orders
        1 to 4), `brierlm_untrained` and `brierlm_unigram` (the same scores of these baselines, or none);
        `tokens_per_second` and `ae_tokens_per_second` (medians over the training); `samples`; `wall_seconds` of both
        runs together; `sizes` of both.

    Raises:
        UserError: when a run has no log or no evaluation.
    """
    autoencoder, calm = read_run("autoencoder", autoencoder_run), read_run("calm", calm_run)
    autoencoder_log, calm_log = _log(autoencoder), _log(calm)
    reconstruction, score = _evaluation(autoencoder), calm.score or _evaluation(calm)
    if calm.score is None:
        what = "the evaluation of the calm run gives no BrierLM with an interval"
        raise UserError(what, str(calm_run), "score more text, with K of 4 or more")
    return {
        "ae_token_accuracy": reconstruction["token_accuracy_sample"],
        "ae_token_accuracy_mean": reconstruction["token_accuracy_mean"],
        "ae_robustness": reconstruction.get("robustness", []),
        "ae_collapsed_dimensions": reconstruction.get("collapsed_dimensions"),
        "brierlm": score["brierlm"],
        "brierlm_low": score["brierlm_low"],
        "brierlm_high": score["brierlm_high"],
        "confidence": score.get("confidence"),
        "brier": score["brier"],
        "brierlm_untrained": calm.baselines.get("untrained"),
        "brierlm_unigram": calm.baselines.get("unigram"),
        "tokens_per_second": median_throughput(calm_log),
        "ae_tokens_per_second": median_throughput(autoencoder_log),
        "samples": list(calm.samples),
        "wall_seconds": autoencoder_log.wall_seconds + calm_log.wall_seconds,
        "sizes": {"autoencoder": sizes(autoencoder), "calm": sizes(calm)},
    }


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Write a summary; the file is whole or not there."""
    write_output(path, orjson.dumps(summary, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def median_throughput(log: RunLog) -> float | None:
    """Median over the steps of the training throughput, in tokens a second."""
    _, values = log.series("speed/tokens_per_second")
    finite = [value for value in values if math.isfinite(value)]
    return statistics.median(finite) if finite else None


def sizes(run: RunFolder) -> dict[str, int | float]:
    """The model's sizes as its config gives them, its parameters if the log tells them, and how long it was trained."""
    found = {name: value for name, value in (run.config.get("model") or {}).items() if type(value) in (int, float)}
    if run.log is not None:
        if (parameters := run.log.fact("parameters")) is not None:
            found["parameters"] = parameters
        if run.log.train:
            found["steps"] = run.log.train[-1].step
            found["train_tokens"] = round(run.log.train[-1].values.get("tokens", 0))
    return found


def _log(run: RunFolder) -> RunLog:
    if run.log is None:
        what_to_do = "name the folder of a run that has trained"
        raise UserError(f"the {run.task} run has no log", str(run.directory), what_to_do)
    return run.log


def _evaluation(run: RunFolder) -> dict[str, Any]:
    if run.evaluation is None:
        what_to_do = "evaluate it with tools/evaluate.py first"
        raise UserError(f"the {run.task} run has no evaluation.json", str(run.directory), what_to_do)
    return dict(run.evaluation)
