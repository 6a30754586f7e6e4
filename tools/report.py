"""Make `report.html` of an autoencoder run, a CALM run, or both, and `summary.json` of both, from their files."""

import argparse
from pathlib import Path

from calm_megatron.config.errors import UserError, run_command_line
from calm_megatron.telemetry.report import write_report
from calm_megatron.telemetry.summary import build_summary, write_summary


def main() -> None:
    """Read the command line and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--autoencoder", type=Path, metavar="RUN", help="folder of the autoencoder's run")
    parser.add_argument("--calm", type=Path, metavar="RUN", help="folder of the CALM's run")
    parser.add_argument(
        "--evaluation", type=Path, metavar="FILE", help="the CALM's evaluation; default: RUN/evaluation.json"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder that report.html is written to"
    )
    parser.add_argument("--title", default="CALM training report", help="heading of the page")
    parser.add_argument(
        "--command", action="append", default=[], metavar="LINE", help="a command that made the runs; may be repeated"
    )
    parser.add_argument(
        "--about",
        action="append",
        default=[],
        metavar="NAME=TEXT",
        help="a row about what was run, such as its corpus; may be repeated",
    )
    options = parser.parse_args()
    path = write_report(
        options.output,
        autoencoder_run=options.autoencoder,
        calm_run=options.calm,
        evaluation=options.evaluation,
        commands=options.command,
        about=dict(_name_and_text(row) for row in options.about),
        title=options.title,
    )
    print(f"wrote {path}")
    if options.autoencoder and options.calm:
        summary = options.output / "summary.json"
        write_summary(summary, build_summary(options.autoencoder, options.calm))
        print(f"wrote {summary}")


def _name_and_text(row: str) -> tuple[str, str]:
    name, equals, text = row.partition("=")
    if not equals:
        example = "write, for example, --about 'Corpus=Shakespeare, 4.9 MB'"
        raise UserError(f"--about needs NAME=TEXT, and was given {row!r}", "--about", example)
    return name, text


if __name__ == "__main__":
    run_command_line(main)
