"""The text of a Slurm batch script."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from calm_megatron.launch.job import JobConfig

_SHUTDOWN_SECONDS = 300
"""For which torchrun lets ranks save after SIGTERM; Slurm's own patience (KillWait) is often shorter."""


@dataclass(frozen=True)
class Program:
    """What the job runs."""

    name: str
    """Of the job."""
    code: str
    """Folder of the project; may hold variables of the shell."""
    script: str
    """The entry point, in that folder."""
    words: Sequence[str]
    """Files and settings of the run."""
    takes_settings: bool = False
    """Whether words behind the script's name on sbatch's command line are settings of the run."""
    output: str = "slurm-%x-%j.out"
    """Where the job's output goes, as Slurm writes it."""


def script_text(job: JobConfig, program: Program) -> str:
    """The whole script."""
    return "\n".join([*_head(job, program), "", *_body(job, program), ""])


def _head(job: JobConfig, program: Program) -> Iterator[str]:
    yield "#!/usr/bin/env bash"
    options: dict[str, object] = {
        "job-name": program.name,
        "output": program.output,
        "open-mode": "append",
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": job.gpus_per_node or None,
        "cpus-per-task": job.cpus_per_task,
        "time": job.time,
        "signal": f"B:USR1@{job.warning_seconds}",
        "account": job.account,
        "partition": job.partition,
        "qos": job.qos,
        "constraint": job.constraint,
        "exclude": job.exclude,
        "reservation": job.reservation,
        "mail-user": job.mail_user,
        "mail-type": job.mail_type if job.mail_user else None,
    }
    yield from (f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None)
    yield "#SBATCH --requeue" if job.requeue else "#SBATCH --no-requeue"
    if job.exclusive:
        yield "#SBATCH --exclusive"


def _body(job: JobConfig, program: Program) -> Iterator[str]:
    yield "set -euo pipefail"
    yield f"code={program.code}"
    yield f"ranks=${{RANKS_PER_NODE:-{job.ranks}}}"
    first = '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
    yield f"host=${{RENDEZVOUS_HOST:-{job.rendezvous_host or first}}}"
    yield "port=$((20000 + SLURM_JOB_ID % 10000))"
    yield from job.setup
    if job.virtual_environment is not None:
        yield f'source "${{VIRTUAL_ENVIRONMENT:-{job.virtual_environment}}}/bin/activate"'
    # The processors of a node, shared by its ranks: more threads than that wait for each other at every step.
    yield "threads=$((${SLURM_CPUS_PER_TASK:-1} / ranks))"
    yield 'export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}"'
    yield from (f"export {name}={shlex.quote(value)}" for name, value in job.environment.items())
    yield 'export PYTHONPATH="$code" SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"'
    yield f"export CALM_WARNING_SECONDS={job.warning_seconds} CALM_MAX_IDLE_STARTS={job.max_idle_starts}"
    yield ""
    yield "# One launcher a node, which starts its ranks. The supervisor starts all of them again when one is lost,"
    yield "# and puts the job back into the queue when its time is over."
    python = "python" if job.virtual_environment is not None else "python3"
    commands = [
        f"exec {python} -m calm_megatron.launch.supervise",
        f"srun --wait=60 --kill-on-bad-exit=0{_container(job)}",
        "python -m calm_megatron.launch.node",
        '--nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$ranks" --max-restarts 0',
        '--rdzv-backend c10d --rdzv-endpoint "$host:$port" --rdzv-id "$SLURM_JOB_ID"',
        f"--shutdown-timeout {_SHUTDOWN_SECONDS}",
        f'"$code/{program.script}" {shlex.join(program.words)}' + (' "$@"' if program.takes_settings else ""),
    ]
    yield " \\\n    ".join(commands)


def _container(job: JobConfig) -> str:
    if job.container is None:
        return ""
    mounts = f" --container-mounts={job.container_mounts}" if job.container_mounts else ""
    return f' --container-image={shlex.quote(job.container)}{mounts} --container-workdir="$PWD"'
