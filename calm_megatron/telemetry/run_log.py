"""`log.jsonl`: one JSON object a line, only ever appended to.

Every line has `kind` ("train", "validation" or "event"), `step` and `time` (Unix seconds). Train and validation lines
hold their values beside these; events hold `event` (what kind), `message` and their facts.

A process that begins writes an event `start` or `resume` with the step it begins from. Lines of a later step that lie
before it belong to an attempt that was given up: they stay in the file, and `read_log` leaves them out.
Numbers that JSON lacks are written as "NaN", "Infinity" and "-Infinity".
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from calm_megatron.config.errors import UserError

FILE_NAME = "log.jsonl"
BEGINNINGS = ("start", "resume")
FROM_OUTSIDE = ("attempt", "outcome")
"""Events that the job's supervisor tells, while no process of the run is alive (launch/story.py)."""
_OWN_NAMES = frozenset({"kind", "step", "time", "event", "message"})

RecordKind = Literal["train", "validation"]


@dataclass(frozen=True)
class Record:
    """The values of one training step or one validation."""

    kind: RecordKind
    step: int
    time: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class Event:
    """Something that happened, and the facts that go with it."""

    kind: str
    step: int
    time: float
    message: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class RunLog:
    """What a log says of the run as it finally went, by step."""

    train: tuple[Record, ...]
    validation: tuple[Record, ...]
    events: tuple[Event, ...]
    wall_seconds: float
    """Time in which a process of the run was alive, attempts that were given up included."""
    cut_lines: int
    """Lines that a killed process left unfinished."""

    def series(self, name: str, kind: RecordKind = "train") -> tuple[list[int], list[float]]:
        """Steps and values of one name, where it was recorded."""
        records = [record for record in self._records(kind) if name in record.values]
        return [record.step for record in records], [record.values[name] for record in records]

    def names(self, kind: RecordKind = "train") -> list[str]:
        """Names that occur, in order of first occurrence."""
        return list(dict.fromkeys(name for record in self._records(kind) for name in record.values))

    def fact(self, name: str) -> Any:
        """The last value that an event gave for a fact, or none."""
        return next((event.facts[name] for event in reversed(self.events) if name in event.facts), None)

    def _records(self, kind: RecordKind) -> tuple[Record, ...]:
        return self.train if kind == "train" else self.validation


class LogFile:
    """Appends lines to a log; each is in the hands of the operating system when its call returns."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("ab+")
        if self._ends_in_a_cut_line():
            self._stream.write(b"\n")

    def record(self, record: Record) -> None:
        """Append the values of a step."""
        self._append({"kind": record.kind, "step": record.step, "time": record.time}, record.values)

    def event(self, event: Event) -> None:
        """Append an event."""
        head = {"kind": "event", "step": event.step, "time": event.time, "event": event.kind, "message": event.message}
        self._append(head, event.facts)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _append(self, head: dict[str, Any], rest: Mapping[str, Any]) -> None:
        if taken := _OWN_NAMES & rest.keys():
            raise ValueError(f"the log uses these names itself: {', '.join(sorted(taken))}")
        line = head | {name: _to_json(value) for name, value in rest.items()}
        self._stream.write(orjson.dumps(line, default=str, option=orjson.OPT_APPEND_NEWLINE))
        self._stream.flush()

    def _ends_in_a_cut_line(self) -> bool:
        if self._stream.seek(0, 2) == 0:
            return False
        self._stream.seek(-1, 2)
        return self._stream.read(1) != b"\n"


def read_log(path: Path) -> RunLog:
    """Read a log, keeping of each step what its last attempt wrote.

    Raises:
        UserError: when there is no such file.
    """
    if not path.is_file():
        raise UserError("there is no log of this run", str(path), "name the folder of a run that has trained")
    reader = _Reader()
    for line in path.read_bytes().splitlines():
        reader.take(line)
    return reader.run_log()


class _Reader:
    """Takes the lines of a log in order and forgets what later lines supersede."""

    def __init__(self) -> None:
        self._records: dict[RecordKind, dict[int, Record]] = {"train": {}, "validation": {}}
        self._events: list[Event] = []
        self._attempts: list[list[float]] = []
        self._cut_lines = 0

    def take(self, line: bytes) -> None:
        entry = _parse(line)
        if entry is None:
            self._cut_lines += bool(line.strip())
        elif isinstance(entry, Event):
            self._take_event(entry)
        else:
            self._take_record(entry)

    def run_log(self) -> RunLog:
        train, validation = (tuple(of_kind[step] for step in sorted(of_kind)) for of_kind in self._records.values())
        seconds = sum(times[-1] - times[0] for times in self._attempts)
        return RunLog(train, validation, tuple(self._events), seconds, self._cut_lines)

    def _take_event(self, event: Event) -> None:
        self._events.append(event)
        if event.kind not in FROM_OUTSIDE:
            self._note_time(event.time, begins=event.kind in BEGINNINGS)
        if event.kind in BEGINNINGS:
            for kind, of_kind in self._records.items():
                self._records[kind] = {step: record for step, record in of_kind.items() if step <= event.step}

    def _take_record(self, record: Record) -> None:
        self._note_time(record.time, begins=False)
        of_kind = self._records[record.kind]
        earlier = of_kind.get(record.step)
        # Two validations of one step (one while training, one at its end) may give different values: both are kept.
        values = record.values if earlier is None else {**earlier.values, **record.values}
        of_kind[record.step] = Record(record.kind, record.step, record.time, values)

    def _note_time(self, time: float, begins: bool) -> None:
        if begins or not self._attempts:
            self._attempts.append([time])
        self._attempts[-1].append(time)


def _parse(line: bytes) -> Record | Event | None:
    """The entry of a line; none when the line is not whole."""
    try:
        entry = orjson.loads(line)
        kind, step, time = entry.pop("kind"), int(entry.pop("step")), float(entry.pop("time"))
        if kind == "event":
            return Event(entry.pop("event"), step, time, entry.pop("message"), entry)
        if kind in ("train", "validation"):
            return Record(kind, step, time, {name: float(value) for name, value in entry.items()})
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError):
        pass
    return None


def _to_json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
