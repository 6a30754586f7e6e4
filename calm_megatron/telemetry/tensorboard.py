"""TensorBoard scalars: `train/...`, `validation/...`, `speed/...` and `memory/...`, by step."""

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from calm_megatron.telemetry.run_log import Event, Record

FOLDER_NAME = "tensorboard"
_OWN_GROUPS = ("speed/", "memory/")


class TensorBoard:
    """Writes every record as scalars.

    Args:
        directory: folder of the run.
        resumed_step: what an earlier attempt wrote of later steps is hidden.
    """

    def __init__(self, directory: Path, resumed_step: int) -> None:
        self._writer = SummaryWriter(str(directory / FOLDER_NAME), purge_step=resumed_step + 1, flush_secs=10)

    def record(self, record: Record) -> None:
        """Write the values of a step."""
        for name, value in record.values.items():
            tag = name if name.startswith(_OWN_GROUPS) else f"{record.kind}/{name}"
            self._writer.add_scalar(tag, value, record.step, walltime=record.time)

    def event(self, event: Event) -> None:
        """Write out what is buffered: an event may be the last that is heard of the run."""
        self._writer.flush()

    def close(self) -> None:
        """Write out what is buffered and close the file."""
        self._writer.close()
