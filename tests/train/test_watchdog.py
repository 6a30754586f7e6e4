"""What a rank that hung leaves behind is still there when the run has been started again."""

from pathlib import Path

import pytest

from calm_megatron.train.watchdog import Watchdog


def test_stacks_outlive_the_next_start(tmp_path: Path) -> None:
    stacks = tmp_path / "stacks"
    with pytest.raises(KeyboardInterrupt), Watchdog(tmp_path, 3, 10.0):
        raise KeyboardInterrupt
    assert not stacks.exists()
    stacks.mkdir()
    (stacks / "rank_00003.txt").write_text("rank 3, process 7, no step for 10 minutes\nThread 0x1\n")
    with Watchdog(tmp_path, 3, 10.0):
        old = [path for path in stacks.iterdir() if path.name != "rank_00003.txt"]
        assert len(old) == 1 and "Thread 0x1" in old[0].read_text()
    assert list(stacks.iterdir()) == old
