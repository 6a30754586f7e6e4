"""Pace, throughput and time left are what the clock says."""

import subprocess
import sys

import pytest

from calm_megatron.telemetry.meters import StepMeter
from tests.small_runs import ROOT


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def test_the_first_step_counts_for_no_pace() -> None:
    clock = Clock()
    meter = StepMeter(train_iters=10, clock=clock)
    clock.wait(30.0)
    first = meter.after_step(1, tokens=1000)
    assert first.seconds == 30.0
    assert first.tokens_per_second is None
    assert first.seconds_left is None
    clock.wait(2.0)
    second = meter.after_step(2, tokens=2000)
    assert second.tokens_per_second == 500.0
    assert second.seconds_left == 8 * 2.0


def test_throughput_is_tokens_over_time_of_the_window() -> None:
    clock = Clock()
    meter = StepMeter(train_iters=100, window=3, clock=clock)
    tokens = 0
    for step, (seconds, consumed) in enumerate([(9, 50), (1, 100), (2, 100), (3, 400), (5, 600)], start=1):
        clock.wait(seconds)
        tokens += consumed
        measures = meter.after_step(step, tokens)
    assert measures.tokens_per_second == pytest.approx((100 + 400 + 600) / (2 + 3 + 5))
    assert measures.seconds_left == 95 * 3.0, "the median of the window, not its mean"


def test_what_lies_between_steps_is_no_training() -> None:
    clock = Clock()
    meter = StepMeter(train_iters=5, clock=clock)
    for step in (1, 2):
        clock.wait(1.0)
        meter.after_step(step, tokens=100 * step)
    clock.wait(60.0)
    assert meter.restart_clock() == 60.0
    clock.wait(1.0)
    third = meter.after_step(3, tokens=300)
    assert third.seconds == 1.0
    assert third.tokens_per_second == 100.0
    assert third.seconds_left == 2.0


def test_a_resumed_run_does_not_count_the_tokens_of_before() -> None:
    clock = Clock()
    meter = StepMeter(train_iters=1002, clock=clock)
    clock.wait(4.0)
    assert meter.after_step(1001, tokens=1_001_000).tokens_per_second is None
    clock.wait(4.0)
    assert meter.after_step(1002, tokens=1_002_000).tokens_per_second == 250.0


def test_peak_memory_follows_the_process() -> None:
    # A process of its own, as this one's peak may be higher already; Linux hands that on, so a block goes beyond it.
    code = """
from calm_megatron.telemetry.meters import StepMeter
meter = StepMeter(train_iters=2)
before = meter.after_step(1, tokens=1).host_peak_gib
block = b"x" * int((before + 0.3) * 2**30)
print(before, meter.after_step(2, tokens=2).host_peak_gib)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    assert 0.01 < before < 100
    assert after - before > 0.2
