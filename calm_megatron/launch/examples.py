"""Writes the scripts of examples/slurm from the models there: `python -m calm_megatron.launch.examples`.

Unlike those of tools/launch.py they run the folder from which they are submitted, and take settings of the run.
"""

from dataclasses import replace
from pathlib import Path

from calm_megatron.config.errors import run_command_line
from calm_megatron.launch.job import load_job
from calm_megatron.launch.sbatch import Program, script_text
from calm_megatron.launch.snapshot import PROJECT

FOLDER = PROJECT / "examples" / "slurm"
NODES = {"ae_75m": 1, "calm_m": 2, "calm_l": 4, "calm_xl": 8, "ar_m": 2}
"""Nodes of eight GPUs, by model."""


def example(model: str) -> str:
    """The script of a model file."""
    job = replace(load_job(FOLDER / "cluster.yaml"), nodes=NODES[model])
    entry = "pretrain_ae.py" if model.startswith("ae") else "pretrain_calm.py"
    words = (f"examples/models/{model}.yaml", "examples/machines/gpu_node.yaml")
    return script_text(job, Program(model, '"${SLURM_SUBMIT_DIR}"', entry, words, takes_settings=True))


def main() -> None:
    """Write them all."""
    for model in NODES:
        path: Path = FOLDER / f"{model}.sbatch"
        path.write_text(example(model), encoding="utf-8")


if __name__ == "__main__":
    run_command_line(main)
