"""Write the Slurm job of a run, show it, and with --submit hand it to Slurm.

Example: python tools/launch.py examples/slurm/cluster.yaml examples/models/calm_xl.yaml examples/machines/gpu_node.yaml
    run.directory=runs/calm_xl data.data_path=data/llama slurm.nodes=16 slurm.account=me --submit
"""

import argparse
from pathlib import Path

from calm_megatron.config.errors import UserError, run_command_line
from calm_megatron.config.files import load_run
from calm_megatron.launch import submit
from calm_megatron.launch.job import load_job


def demand_chain(chain: int | None, submitted: bool) -> None:
    """Refuse a number of jobs that is none, or has no effect."""
    if chain is not None and chain < 1:
        raise UserError(f"chain is {chain}", "--chain", "give 1 or more")
    if chain is not None and not submitted:
        raise UserError("nothing is submitted, so there is no chain", "--chain", "give --submit too, or leave it out")


def main() -> None:
    """Read the command line; write, show, submit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("job", type=Path, metavar="JOB.yaml", help="what the job asks Slurm for")
    add("words", nargs="+", metavar="CONFIG.yaml | section.key=value", help="files and settings; slurm.* are the job's")
    add("--submit", action="store_true", help="take the snapshot and submit; without it the script is shown only")
    add(
        "--chain",
        type=int,
        metavar="N",
        help="of --submit: N jobs, each for the case that the last did not finish (default: 1)",
    )
    given = parser.parse_intermixed_args()
    demand_chain(given.chain, given.submit)
    settings = [word for word in given.words if "=" in word]
    ours = [word for word in settings if word.startswith("slurm.")]
    job = load_job(given.job, ours)
    files = [word for word in given.words if "=" not in word]
    config = load_run(files, [word for word in settings if word not in ours])
    if not given.submit:
        print(submit.preview(job, config), end="")
        return
    script = submit.prepare(job, config)
    print(script.read_text(), end="")
    jobs = submit.submit(script, given.chain or 1)
    print(f"\nsubmitted as {', '.join(jobs)}; output and snapshot in {script.parent}")


if __name__ == "__main__":
    run_command_line(main)
