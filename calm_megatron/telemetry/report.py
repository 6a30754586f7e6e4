"""`report.html`: what a person reads when the runs are over. One file, no network, made from the runs' files alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from calm_megatron.config.atomic import demand_writable, write_output
from calm_megatron.config.errors import UserError
from calm_megatron.telemetry import formats, report_charts
from calm_megatron.telemetry.run_folder import RunFolder, read_run
from calm_megatron.telemetry.summary import median_throughput, sizes

FILE_NAME = "report.html"
_TEMPLATE = "report.html.jinja"
_LONG_TIMELINE = 14


@dataclass(frozen=True)
class Tile:
    """One headline figure."""

    label: str
    value: str
    note: str


def write_report(
    run_directory: Path,
    *,
    autoencoder_run: Path | None = None,
    calm_run: Path | None = None,
    evaluation: Path | None = None,
    commands: Sequence[str] = (),
    about: Mapping[str, str] | None = None,
    title: str = "CALM training report",
) -> Path:
    """Write the report of an autoencoder, of a CALM, or of both. What was not recorded is left out.

    Args:
        run_directory: folder that `report.html` is written to.
        autoencoder_run: folder of the autoencoder's run.
        calm_run: folder of the CALM's run.
        evaluation: the CALM's evaluation, when it lies elsewhere than in the run's folder.
        commands: the command lines that made the runs, in their order.
        about: further rows for what was run, such as the corpus and the tokenizer.
        title: heading of the page.

    Returns:
        The path of the report.

    Raises:
        UserError: when no run is named, a named folder or file is missing, one is damaged, or the report cannot be
            written.
    """
    if autoencoder_run is None and calm_run is None:
        raise UserError("a report needs a run", "", "name the folder of an autoencoder run, of a CALM run, or of both")
    if evaluation is not None and calm_run is None:
        raise UserError("an evaluation needs the CALM run that it belongs to", str(evaluation), "name the CALM run too")
    path = run_directory / FILE_NAME
    demand_writable(path)
    autoencoder = read_run("autoencoder", autoencoder_run) if autoencoder_run else None
    calm = read_run("calm", calm_run, evaluation) if calm_run else None
    runs = [run for run in (autoencoder, calm) if run is not None]
    content = {
        "title": title,
        "finished": _finished(runs),
        "tiles": _autoencoder_tiles(autoencoder) + _calm_tiles(calm) + _shared_tiles(runs),
        "about": dict(about or {}),
        "runs": [(_name(run), _what_was_run(run)) for run in runs],
        "autoencoder": _autoencoder_section(autoencoder),
        "calm": _calm_section(calm),
        "score": _score_section(calm),
        "samples": [_sample(sample) for sample in calm.samples] if calm else [],
        "timeline": _timeline(runs),
        "long_timeline": _LONG_TIMELINE,
        "cut_lines": sum(run.log.cut_lines for run in runs if run.log),
        "environment": _environment(runs),
        "commands": list(commands),
    }
    write_output(path, _render(content).encode())
    return path


def _render(content: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(_TEMPLATE).render(content)


def _name(run: RunFolder) -> str:
    return "Autoencoder" if run.task == "autoencoder" else "CALM"


def _finished(runs: Sequence[RunFolder]) -> str:
    logs = [run.log for run in runs if run.log]
    times = [record.time for log in logs for record in log.train[-1:]]
    times += [event.time for log in logs for event in log.events[-1:]]
    return f"{formats.moment(max(times))} UTC" if times else ""


def _autoencoder_tiles(run: RunFolder | None) -> list[Tile]:
    if run is None or run.evaluation is None:
        return []
    found = run.evaluation
    note = f"from a posterior sample, {found.get('split', 'held-out')} set"
    tiles = [Tile("Reconstructed tokens", formats.percent(found["token_accuracy_sample"]), note)]
    if (collapsed := found.get("collapsed_dimensions")) is not None:
        alive = f"{found['latent_size'] - collapsed} of {found['latent_size']}"
        tiles.append(
            Tile("Latent dimensions", alive, "carry information" if collapsed else "carry information, none collapsed")
        )
    return tiles


def _calm_tiles(run: RunFolder | None) -> list[Tile]:
    if run is None:
        return []
    tiles = []
    if (found := run.score) is not None:
        tiles.append(Tile("BrierLM", f"{found['brierlm']:.2f}", f"{_level(found)} interval: {_interval(found)}"))
    if run.log is not None and (speed := median_throughput(run.log)) is not None:
        tiles.append(Tile("Training throughput", f"{formats.count(speed)}", "tokens a second, CALM, median"))
    return tiles


def _shared_tiles(runs: Sequence[RunFolder]) -> list[Tile]:
    logs = {_name(run): run.log for run in runs if run.log}
    if not logs:
        return []
    seconds = {name: log.wall_seconds for name, log in logs.items()}
    parts = ", ".join(f"{name} {formats.duration(time)}" for name, time in seconds.items())
    return [Tile("Training time", formats.duration(sum(seconds.values())), parts if len(logs) > 1 else "wall time")]


def _what_was_run(run: RunFolder) -> list[tuple[str, str]]:
    """Rows of a table: the settings that decide what the run is."""
    found = sizes(run)
    rows: list[tuple[str, Any]] = [
        ("Parameters", formats.count(found["parameters"]) if "parameters" in found else None),
        ("Tokens per vector (K)", run.setting("model", "patch_size")),
        ("Latent size", run.setting("model", "latent_size")),
        ("Vocabulary", run.setting("model", "vocab_size")),
        ("Hidden size", run.setting("model", "hidden_size")),
        ("Layers", _layers(run)),
        ("Data", run.setting("data", "data_path") or run.setting("data", "train_data_path")),
        ("Sequence", _tokens(run.setting("data", "seq_length"))),
        ("Batch", _sequences(run.setting("train", "global_batch_size"))),
        ("Steps", found.get("steps")),
        ("Tokens seen", formats.count(found["train_tokens"]) if "train_tokens" in found else None),
        ("Learning rate", _learning_rate(run)),
        ("Precision", run.setting("train", "precision")),
        ("Seed", run.setting("run", "seed")),
    ]
    told = [(name, value) for name, value in rows if value is not None]
    return [(name, f"{value:,}" if type(value) is int and name != "Seed" else str(value)) for name, value in told]


def _layers(run: RunFolder) -> str | None:
    if run.task == "autoencoder":
        encoder, decoder = run.setting("model", "num_encoder_layers"), run.setting("model", "num_decoder_layers")
        return f"{encoder} + {decoder}" if encoder and decoder else None
    layers, head = run.setting("model", "num_layers"), (run.setting("model", "head") or {}).get("num_layers")
    return f"{layers} + {head} in the head" if layers and head else None


def _tokens(number: int | None) -> str | None:
    return f"{number:,} tokens" if number else None


def _sequences(number: int | None) -> str | None:
    return f"{number:,} sequences" if number else None


def _learning_rate(run: RunFolder) -> str | None:
    rate = run.setting("optimizer", "lr")
    return f"{rate:g}, {run.setting('optimizer', 'lr_decay_style') or 'constant'}" if rate else None


def _autoencoder_section(run: RunFolder | None) -> dict[str, Any] | None:
    if run is None:
        return None
    charts = report_charts.autoencoder(run)
    found = run.evaluation or {}
    facts = [
        ("from a posterior sample", formats.percent(found.get("token_accuracy_sample"))),
        ("from the posterior mean", formats.percent(found.get("token_accuracy_mean"))),
        ("cross-entropy", formats.short(found.get("cross_entropy"))),
        ("KL", formats.short(found.get("kl"))),
    ]
    pace = report_charts.pace(run)
    if not (charts or pace or found):
        return None
    return {"charts": _marked(charts), "pace": _marked(pace), "facts": facts if found else []}


def _calm_section(run: RunFolder | None) -> dict[str, Any] | None:
    if run is None:
        return None
    charts, pace = report_charts.calm(run), report_charts.pace(run)
    return {"charts": _marked(charts), "pace": _marked(pace)} if charts or pace else None


def _score_section(run: RunFolder | None) -> dict[str, Any] | None:
    """BrierLM beside its baselines: the chart, and a table with the four orders."""
    if run is None or (score := run.score) is None:
        return None
    models = {"this model": score} | dict(run.baselines)
    return {
        "charts": _marked(report_charts.score(run, models)),
        "level": _level(score),
        "tokens": f"{score['tokens']:,}" if "tokens" in score else None,
        "rows": [
            (name, f"{found['brierlm']:.2f}", _interval(found), [f"{value:.5f}" for value in found["brier"]])
            for name, found in models.items()
        ],
    }


def _interval(found: Mapping[str, Any]) -> str:
    return f"{found['brierlm_low']:.2f} to {found['brierlm_high']:.2f}"


def _level(evaluation: Mapping[str, Any]) -> str:
    return f"{100 * evaluation.get('confidence', 0.95):g} %"


def _sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    settings = [f"{name} {sample[name]:g}" for name in ("temperature", "seed") if name in sample]
    return {"prompt": sample.get("prompt", ""), "text": sample.get("text", ""), "settings": ", ".join(settings)}


def _timeline(runs: Sequence[RunFolder]) -> list[dict[str, str]]:
    told = [(event, run) for run in runs if run.log for event in run.log.events]
    return [
        {
            "time": formats.moment(event.time),
            "run": _name(run),
            "step": f"{event.step:,}",
            "kind": event.kind.replace("_", " "),
            "message": event.message,
        }
        for event, run in sorted(told, key=lambda pair: pair[0].time)
    ]


def _environment(runs: Sequence[RunFolder]) -> dict[str, str]:
    """Where the runs ran; facts in which they differ are told for each."""
    described = {_name(run): facts for run in runs if run.log and (facts := run.log.fact("environment"))}
    rows: dict[str, str] = {}
    for fact in dict.fromkeys(fact for facts in described.values() for fact in facts):
        values = {name: str(facts[fact]) for name, facts in described.items() if fact in facts}
        same = len(set(values.values())) == 1
        each = "; ".join(f"{name}: {value}" for name, value in values.items())
        rows[fact] = next(iter(values.values())) if same else each
    return rows


def _marked(charts: Sequence[report_charts.Chart]) -> list[dict[str, Any]]:
    return [{"title": chart.title, "note": chart.note, "svg": Markup(chart.svg)} for chart in charts]
