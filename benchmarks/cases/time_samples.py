"""Time of a training step on two tensor ranks, the head shared by samples, against the head's matrices cut."""

from benchmarks import samples
from benchmarks.harness import Row, row


def run() -> Row:
    """Compare the times of the steps, taken in turns."""
    found = samples.both_ways()
    ours, cut = ([1e3 * seconds for seconds in found[name]["seconds"]] for name in ("samples", "matrices"))
    return row(ours, cut, "ms")
