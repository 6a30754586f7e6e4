"""Run the benchmarks of benchmarks/cases: `python -m benchmarks.run [--only NAME]`, or `make bench [ONLY=NAME]`.

Each case is a module with `run() -> Row`, named by its file. Each prints a row and replaces its own one in
benchmarks/results.json.
"""

import argparse
import dataclasses
import importlib
import json
import os
import pkgutil
from pathlib import Path
from typing import Any

from benchmarks import cases
from benchmarks.harness import Row, machine

RESULTS = Path(__file__).with_name("results.json")


def main() -> None:
    """Run what the command line asks for."""
    names = sorted(module.name for module in pkgutil.iter_modules(cases.__path__))
    parser = argparse.ArgumentParser(description="Measure ours beside a baseline; ratio = baseline / ours.")
    parser.add_argument("--only", choices=names, metavar="NAME", help=f"one of: {', '.join(names)}")
    only = parser.parse_args().only
    print(f"{'':24} {'ratio':>7}  {'quartiles':>15} {'ours':>10} {'baseline':>10}")
    for name in [only] if only else names:
        found: Row = importlib.import_module(f"benchmarks.cases.{name}").run()
        low, high = found.spread
        print(
            f"{name:24} {found.ratio:6.2f}x  {f'{low:.2f} to {high:.2f}':>15}"
            f" {found.ours:10.2f} {found.baseline:10.2f} {found.unit}",
            flush=True,
        )
        for part in found.parts:
            print(f"  {part.name:<52} {part.ratio:6.3f} {part.ours:10.4g} {part.baseline:10.4g}", flush=True)
        keep({"name": name, **_rounded(found), "machine": machine()})


def keep(result: dict[str, Any]) -> None:
    """Put one result into the file in the place of the last one of its name."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    others = [other for other in results if other["name"] != result["name"]]
    text = json.dumps(sorted([*others, result], key=lambda each: str(each["name"])), indent=2)
    partial = RESULTS.with_suffix(".partial")
    partial.write_text(text + "\n")
    os.replace(partial, RESULTS)


def _rounded(found: Row) -> dict[str, Any]:
    """The row with four digits, which is more than a clock is good for."""
    values = dataclasses.asdict(found)
    values = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in values.items()}
    values["spread"] = [float(f"{value:.4g}") for value in found.spread]
    parts = [[part.name, float(f"{part.ours:.4g}"), float(f"{part.baseline:.4g}")] for part in found.parts]
    del values["parts"]
    return values | ({"parts": parts} if parts else {})


if __name__ == "__main__":
    main()
