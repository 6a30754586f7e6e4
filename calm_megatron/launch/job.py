"""What a Slurm job asks for: a strict file of its own, beside model and machine."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from calm_megatron.config.errors import UserError
from calm_megatron.config.files import build, merge
from calm_megatron.config.schema import NonNegativeInt, PositiveInt, Section, Switch

_Word = Annotated[str, Field(pattern=r"^[^\s'\"\\$`;&|<>]+$")]
_Time = Annotated[str, Field(pattern=r"^(\d+-\d{1,2}(:\d{2}){0,2}|\d+(:\d{2}){0,2})$")]


@dataclass(frozen=True, kw_only=True)
class JobConfig(Section):
    """One job of one run; every rank has a GPU of its own, or on nodes without any, a share of the cores."""

    nodes: PositiveInt = 1
    """Nodes of the job."""
    gpus_per_node: NonNegativeInt = 8
    """GPUs of a node, and ranks on it; 0 on nodes without."""
    ranks_per_node: PositiveInt | None = None
    """Ranks of a node; none means one a GPU."""
    cpus_per_task: PositiveInt | None = None
    """Cores of a node that its ranks share; none leaves it to the cluster."""
    exclusive: Switch = True
    """Have the nodes alone."""
    time: _Time = "24:00:00"
    """Time limit, as Slurm writes it."""
    warning_seconds: Annotated[int, Field(ge=90, strict=True)] = 300
    """Before the time limit the run saves and goes back into the queue: enough for a checkpoint and a validation."""
    requeue: Switch = True
    """Let Slurm start the job again when it is preempted or loses a node."""
    max_idle_starts: PositiveInt = 3
    """Starts in a row without a newer checkpoint, after which the run is given up."""
    account: _Word | None = None
    """Who pays."""
    partition: _Word | None = None
    """Where it runs."""
    qos: _Word | None = None
    """Quality of service."""
    constraint: _Word | None = None
    """Features that the nodes must have."""
    exclude: _Word | None = None
    """Nodes to leave out, such as a bad one that an earlier attempt named."""
    reservation: _Word | None = None
    """Reservation to use."""
    mail_user: _Word | None = None
    """Whom Slurm writes to."""
    mail_type: _Word = "FAIL,END,TIME_LIMIT"
    """What it writes of."""
    virtual_environment: str | None = ".venv"
    """Folder of the Python environment, from the folder of submission; none where `setup` or a container has one."""
    container: str | None = None
    """Image for Slurm's pyxis plugin; the job's own shell stays outside and needs python3 (3.11) alone."""
    container_mounts: _Word | None = None
    """Folders that the container sees, as pyxis writes them."""
    setup: tuple[str, ...] = ()
    """Lines of the script before anything starts, such as `module load cuda`."""
    environment: dict[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")], str] = field(default_factory=dict)
    """Variables for the ranks."""
    rendezvous_host: _Word | None = None
    """Address at which the nodes meet; none means the name of the first."""

    @property
    def ranks(self) -> int:
        """Of a node."""
        return self.ranks_per_node or self.gpus_per_node

    @property
    def seconds(self) -> int:
        """The time limit; 0 means none.

        Without days Slurm writes minutes, minutes:seconds or hours:minutes:seconds, behind days hours come first.
        """
        days, dash, rest = self.time.rpartition("-")
        numbers = [int(part) for part in rest.split(":")]
        if not dash and len(numbers) < 3:
            numbers.insert(0, 0)
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
        return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


@dataclass(frozen=True, kw_only=True)
class _JobFile(Section):
    slurm: JobConfig


def load_job(file: str | Path, overrides: Sequence[str] = ()) -> JobConfig:
    """The job of a YAML file, with settings `slurm.key=value` over it.

    Raises:
        UserError: the file or a setting is wrong.
    """
    tree = {"slurm": {}, **merge([file], overrides)}
    job = build(_JobFile, tree, str(file), "see docs/slurm.md for every setting").slurm
    if not job.ranks:
        raise UserError("slurm.gpus_per_node is 0 and slurm.ranks_per_node is not set", str(file), "set one of them")
    if job.container and job.virtual_environment:
        what = "slurm.container and slurm.virtual_environment are both set"
        raise UserError(what, str(file), "set slurm.virtual_environment=null: the image has its own Python")
    if job.container_mounts and not job.container:
        what = "slurm.container_mounts is set, but slurm.container is not"
        raise UserError(what, str(file), "set slurm.container, or leave the mounts out")
    if 0 < job.seconds <= job.warning_seconds:
        what = f"slurm.warning_seconds = {job.warning_seconds} is not below slurm.time = {job.time}"
        raise UserError(what, str(file), "give the job more time: it would save and stop before it begins")
    return job
