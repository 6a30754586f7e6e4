"""What the runs of a study show: tokens, FLOPs, cross-entropy and BrierLM, at every validation and at the end."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import ArConfig, AutoencoderConfig
from calm_megatron.plan.layers import layer_costs
from calm_megatron.study.grid import Cell
from calm_megatron.study.runner import RESULT
from calm_megatron.telemetry.run_log import FILE_NAME, read_log


@dataclass(frozen=True)
class Point:
    """A validation on the way."""

    tokens: int
    flops: float
    """Of all training steps so far."""
    loss: float
    brierlm: float
    from_probabilities: float | None = None
    """BrierLM of a baseline as its probabilities say, with less noise than from samples."""


@dataclass(frozen=True)
class LanguageRun:
    """A CALM or a baseline."""

    cell: Cell
    parameters: int
    """The frozen autoencoder's not counted."""
    tokens: int
    flops: float
    """Of the whole training."""
    points: tuple[Point, ...]
    """All of the same sequences: the final evaluation is among them only if it is of as many as the others."""
    scores: Mapping[str, Any]
    """The final evaluation."""

    @property
    def is_baseline(self) -> bool:
        """Whether it predicts tokens."""
        return isinstance(self.cell.config.model, ArConfig)


@dataclass(frozen=True)
class AutoencoderRun:
    """An autoencoder."""

    cell: Cell
    scores: Mapping[str, Any]


def read_language_runs(cells: Sequence[Cell]) -> list[LanguageRun]:
    """Of all runs that are done, those that model language."""
    by_name = {cell.name: cell for cell in cells}
    return [_language_run(cell, by_name) for cell in cells if not isinstance(cell.config.model, AutoencoderConfig)]


def read_autoencoder_runs(cells: Sequence[Cell]) -> list[AutoencoderRun]:
    """The autoencoders."""
    return [AutoencoderRun(cell, _scores(cell)) for cell in cells if isinstance(cell.config.model, AutoencoderConfig)]


def _scores(cell: Cell) -> dict[str, Any]:
    file = cell.folder / RESULT
    if not file.exists():
        raise UserError(f"the run {cell.name} is not done", str(file), "start the study without --no-train")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def _language_run(cell: Cell, by_name: Mapping[str, Cell]) -> LanguageRun:
    scores, config = _scores(cell), cell.config
    autoencoder = by_name[cell.after].config.model if cell.after else None
    assert autoencoder is None or isinstance(autoencoder, AutoencoderConfig)
    costs = layer_costs(config, autoencoder)
    flops = sum(cost.step_flops for cost in costs) / config.data.seq_length
    last = config.train.train_iters
    log = read_log(cell.folder / FILE_NAME)
    # As the run counted them: its batch may have been smaller in the beginning.
    tokens = {int(step): round(seen) for step, seen in zip(*log.series("tokens"), strict=True)}
    same_to_the_end = config.evaluation.final_eval_iters == config.evaluation.eval_iters
    points = tuple(
        Point(
            tokens=tokens[record.step],
            flops=flops * tokens[record.step],
            loss=record.values["loss"],
            brierlm=record.values["brierlm"],
            from_probabilities=record.values.get("brierlm_from_probabilities"),
        )
        for record in log.validation
        if "brierlm" in record.values and (record.step < last or same_to_the_end)
    )
    if not points:
        to_do = "set evaluation.eval_interval, and evaluation.rollout_positions for a baseline or K < 4"
        raise UserError(f"the run {cell.name} has no BrierLM", str(cell.folder), to_do)
    parameters = sum(cost.parameters for cost in costs)
    return LanguageRun(cell, parameters, tokens[last], flops * tokens[last], points, scores)


def correlation(runs: Sequence[LanguageRun], from_probabilities: bool = False) -> float | None:
    """Pearson's between cross-entropy and BrierLM over the checkpoints of all baselines; none without two points.

    The paper (arXiv 2510.27688, section 5) finds -0.97 and calls BrierLM a substitute for perplexity by it.
    """
    points = [point for run in runs if run.is_baseline for point in run.points]
    pairs = [(point.loss, point.from_probabilities if from_probabilities else point.brierlm) for point in points]
    known = [(loss, score) for loss, score in pairs if score is not None]
    if any(len(set(column)) < 2 for column in zip(*known, strict=True)) or not known:
        return None
    return statistics.correlation(*map(list, zip(*known, strict=True)))


def table(language: Sequence[LanguageRun], autoencoders: Sequence[AutoencoderRun]) -> str:
    """Two tables in Markdown, and the correlation."""
    rows = [("run", "parameters", "tokens", "FLOPs", "loss", "BrierLM", "95 %", "Brier-1 to 4 (%)")]
    for run in language:
        scores = run.scores
        rows.append(
            (
                run.cell.name,
                f"{run.parameters / 1e6:.2f} M",
                f"{run.tokens / 1e6:.2f} M",
                f"{run.flops:.2e}",
                f"{scores['loss']:.3f}",
                f"{scores['brierlm']:.3f}",
                _interval(scores["brierlm_low"], scores["brierlm_high"]),
                ", ".join(f"{100 * order:.3f}" for order in scores["brier"]),
            )
        )
    texts = [_markdown(rows)]
    if autoencoders:
        accuracy = [(run.cell.name, f"{100 * run.scores['token_accuracy_sample']:.3f}") for run in autoencoders]
        texts.append(_markdown([("autoencoder", "token accuracy (%)"), *accuracy]))
    if (found := correlation(language)) is not None:
        texts.append(
            f"Pearson's correlation of cross-entropy and BrierLM along the baselines: {found:.3f} from samples"
        )
    if (found := correlation(language, from_probabilities=True)) is not None:
        texts[-1] += f", {found:.3f} from probabilities"
    return "\n\n".join(texts) + "\n"


def _interval(low: float | None, high: float | None) -> str:
    """As text; of a single sequence there is none."""
    return "unknown" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
