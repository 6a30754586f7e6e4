"""A run becomes Slurm jobs: a snapshot, a script, and as many jobs in a chain as are asked for."""

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from calm_megatron.config.atomic import write_atomically
from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import RunConfig
from calm_megatron.launch import snapshot
from calm_megatron.launch.job import JobConfig
from calm_megatron.launch.sbatch import Program, script_text


def preview(job: JobConfig, config: RunConfig) -> str:
    """The script as it would be written."""
    return _script(job, config, Path(config.run.directory).resolve() / "launches" / "0000")


def prepare(job: JobConfig, config: RunConfig) -> Path:
    """Take a snapshot of code and config into the run folder and write the script beside it, which is returned.

    Raises:
        UserError: the run folder cannot be written.
    """
    folder = snapshot.take(Path(config.run.directory).resolve(), config)
    (folder / "revision").write_text(snapshot.revision() + "\n")
    write_atomically(folder / "job.sbatch", _script(job, config, folder).encode())
    return folder / "job.sbatch"


def submit(script: Path, chain: int = 1) -> list[str]:
    """Hand a script to Slurm; returns the numbers of the jobs.

    Args:
        script: from `prepare`.
        chain: how many jobs; each begins when the one before it has ended without finishing the run, and those that
            are not needed any more are cancelled by Slurm.

    Raises:
        UserError: there is no Slurm here, or it refuses.
    """
    if shutil.which("sbatch") is None:
        raise UserError("there is no sbatch on this machine", str(script), "submit the script from a login node")
    jobs: list[str] = []
    for _ in range(chain):
        after = [f"--dependency=afternotok:{jobs[-1]}", "--kill-on-invalid-dep=yes"] if jobs else []
        done = subprocess.run(
            ["sbatch", "--parsable", *after, str(script)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise UserError(f"Slurm refuses the job: {done.stderr.strip()}", str(script), "mend the job file")
        jobs.append(done.stdout.strip().partition(";")[0])
    return jobs


def _script(job: JobConfig, config: RunConfig, folder: Path) -> str:
    program = Program(
        name=Path(config.run.directory).resolve().name,
        code=shlex.quote(str(folder / "code")),
        script=config.entry_point,
        words=_words(config, folder),
        output=str(folder / "slurm-%j.out"),
    )
    return script_text(job, program)


def _words(config: RunConfig, folder: Path) -> Sequence[str]:
    return [str(folder / "config.yaml"), f"run.directory={config.run.directory}"]
