"""Where a run is: everything besides weights and optimizer state that is needed to go on exactly."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Progress:
    """A place in a run. Random streams and the learning rate follow from `step`, the data order from the samples."""

    step: int = 0
    """Optimizer steps done."""
    consumed_samples: int = 0
    """Training sequences seen by all ranks."""
    consumed_tokens: int = 0
    recent_losses: tuple[float, ...] = ()
    """What loss spikes are measured against, the newest last."""
    skipped_in_a_row: int = 0
    """Steps that were left out since the last that was not."""

    def advance(self, samples: int, seq_length: int) -> "Progress":
        """The place after one more step of `samples` sequences."""
        return dataclasses.replace(
            self,
            step=self.step + 1,
            consumed_samples=self.consumed_samples + samples,
            consumed_tokens=self.consumed_tokens + samples * seq_length,
        )

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @staticmethod
    def load(path: Path) -> "Progress":
        """Read what `save` wrote."""
        content = json.loads(path.read_text())
        return Progress(**{**content, "recent_losses": tuple(content["recent_losses"])})
