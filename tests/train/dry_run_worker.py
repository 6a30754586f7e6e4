"""Dry runs of the cases in FOLDER/cases.json, [[model, settings, ranks], ...]; what was built goes to found.json."""

import json
import sys
from pathlib import Path

from calm_megatron.plan.report import read_for_plan
from calm_megatron.train.dry_run import dry_run


def main(folder: Path) -> None:
    """Run them one after the other."""
    found = {}
    for name, settings, ranks in json.loads((folder / "cases.json").read_text()):
        config = read_for_plan([f"examples/models/{name}.yaml", "examples/machines/gpu_node.yaml"], settings)
        built = dry_run(config, ranks)
        found[f"{name} {ranks}"] = {
            "parameters": built.parameters,
            "files": len(built.file_weights()),
            "ranks": sorted(rank for part in built.parts for rank in part.ranks),
        }
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
