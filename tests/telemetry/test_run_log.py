"""The log survives kills and resumes, and its reader gives the run as it finally went."""

import math
from pathlib import Path

import orjson
import pytest

from calm_megatron.config.errors import UserError
from calm_megatron.telemetry.run_log import Event, LogFile, Record, read_log


def write(path: Path, *entries: Record | Event) -> None:
    """Append to a log as one process does."""
    log = LogFile(path)
    for entry in entries:
        if isinstance(entry, Event):
            log.event(entry)
        else:
            log.record(entry)
    log.close()


def train(step: int, time: float, loss: float) -> Record:
    """A training step."""
    return Record("train", step, time, {"loss": loss})


def test_a_resume_supersedes_the_steps_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(
        path,
        Event("start", 0, 100.0, "", {}),
        *(train(step, 100.0 + step, loss=step) for step in range(1, 9)),
        Record("validation", 4, 104.5, {"loss": 4.5}),
        Record("validation", 8, 108.5, {"loss": 8.5}),
    )
    write(
        path,
        Event("resume", 5, 200.0, "", {}),
        *(train(step, 200.0 + step, loss=10 * step) for step in (6, 7)),
    )
    log = read_log(path)
    assert log.series("loss") == ([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 60, 70]), (
        "step 8 was given up and not done again"
    )
    assert log.series("loss", "validation") == ([4], [4.5])
    assert [event.kind for event in log.events] == ["start", "resume"]
    assert log.wall_seconds == pytest.approx(8.5 + 7.0), "the time between the two processes does not count"
    assert log.cut_lines == 0
    assert len(path.read_text().splitlines()) == 1 + 8 + 2 + 1 + 2, "nothing was taken out of the file"


def test_a_cut_last_line_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, Event("start", 0, 1.0, "", {}), train(1, 2.0, 5.0), train(2, 3.0, 4.0))
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    log = read_log(path)
    assert log.series("loss") == ([1], [5.0])
    assert log.cut_lines == 1


def test_a_process_after_a_kill_begins_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, Event("start", 0, 1.0, "", {}), train(1, 2.0, 5.0), train(2, 3.0, 4.0))
    path.write_bytes(path.read_bytes()[:-9])
    write(path, Event("resume", 1, 10.0, "", {}), train(2, 11.0, 3.5))
    log = read_log(path)
    assert log.series("loss") == ([1, 2], [5.0, 3.5])
    assert [event.kind for event in log.events] == ["start", "resume"]
    assert log.cut_lines == 1


def test_a_second_validation_of_a_step_adds_to_the_first(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(
        path,
        Record("validation", 3, 1.0, {"loss": 2.0, "brierlm": 4.0}),
        Record("validation", 3, 2.0, {"loss": 1.5}),
    )
    (record,) = read_log(path).validation
    assert record.values == {"loss": 1.5, "brierlm": 4.0}


def test_every_line_is_json_even_for_nan(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, Record("train", 1, 1.0, {"loss": math.nan, "grad_norm": math.inf, "low": -math.inf}))
    assert orjson.loads(path.read_bytes())["loss"] == "NaN"
    (record,) = read_log(path).train
    assert math.isnan(record.values["loss"])
    assert record.values["grad_norm"] == math.inf
    assert record.values["low"] == -math.inf


def test_facts_come_back(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(
        path,
        Event("model", 0, 1.0, "small", {"parameters": 12, "path": Path("a/b")}),
        Event("model", 0, 2.0, "", {"parameters": 13}),
    )
    log = read_log(path)
    assert log.fact("parameters") == 13
    assert log.fact("path") == "a/b"
    assert log.fact("colour") is None


def test_a_value_may_not_take_a_name_of_the_log(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log.jsonl")
    with pytest.raises(ValueError, match="step"):
        log.record(Record("train", 1, 1.0, {"step": 3.0}))


def test_no_log_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no log"):
        read_log(tmp_path / "log.jsonl")
