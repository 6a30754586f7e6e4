"""The lines that a person reads stay in their columns and say what they mean."""

import io
import re

import pytest

from calm_megatron.telemetry import formats
from calm_megatron.telemetry.console import Console, step_line, validation_line
from calm_megatron.telemetry.run_log import Event, Record


def step_record(step: int, loss: float, **values: float) -> Record:
    """A training step of a CALM."""
    terms = {"energy/distance_targets": 6.61, "energy/distance_samples": 5.2, "learning_rate": 3e-4, "grad_norm": 0.87}
    return Record("train", step, 0.0, {"loss": loss, **terms, "tokens": 1024.0, **values})


def test_a_step_in_full() -> None:
    line = step_line(
        step_record(340, 8.0213, **{"speed/tokens_per_second": 12_345.0, "speed/seconds_left": 7384.0}), 20_000
    )
    assert line == (
        "step    340/20000  loss   8.0213  target   6.6100  spread   5.2000  grad   0.8700"
        "  lr 3.00e-04   12.3k tok/s   2h 03m left"
    )


@pytest.mark.parametrize("loss", [0.00012, 123.4567, 1.5e9, float("nan"), float("inf"), 0.0])
def test_columns_stay_in_place(loss: float) -> None:
    known = {"speed/tokens_per_second": 987.0, "speed/seconds_left": 59.0}
    usual = step_line(step_record(1, 8.0), 20_000)
    other = step_line(step_record(20_000, loss, **known), 20_000)
    assert [match.start() for match in re.finditer("target|spread|grad|lr|tok|left", usual)] == [
        match.start() for match in re.finditer("target|spread|grad|lr|tok|left", other)
    ]


def test_a_validation_shows_its_main_values() -> None:
    record = Record("validation", 20, 0.0, {"token_accuracy_sample": 0.99871, "robustness/0.1": 0.5})
    assert validation_line(record, 100) == "valid  20/100  token accuracy sample 0.9987"


def test_lines_come_at_the_interval_and_at_the_end() -> None:
    stream = io.StringIO()
    console = Console(train_iters=7, resumed_step=0, log_interval=3, progress_bar=False, stream=stream)
    for step in range(1, 8):
        console.record(step_record(step, 1.0))
    console.event(Event("stop_signal", 7, 0.0, "SIGTERM came; saving and leaving", {}))
    console.close()
    lines = stream.getvalue().splitlines()
    assert [line[:8] for line in lines] == ["step  3/", "step  6/", "step  7/", "event 7/"]
    assert lines[-1] == "event 7/7  stop signal: SIGTERM came; saving and leaving"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.4, "0s"), (59.7, "1m 00s"), (725, "12m 05s"), (11_045, "3h 04m"), (183_600, "2d 03h")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert formats.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(987, "987"), (12_345, "12.3k"), (371e6, "371M"), (1.82e9, "1.82B"), (999_999, "1.00M")]
)
def test_counts(value: float, text: str) -> None:
    assert formats.count(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.873, "87.3 %"),
        (0.99871, "99.87 %"),
        (0.99934, "99.934 %"),
        (1.0, "100 %"),
        (0.0, "0.0 %"),
        (0.99999999, "99.9999 %"),
    ],
)
def test_shares(share: float, text: str) -> None:
    assert formats.percent(share) == text
