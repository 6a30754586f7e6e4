"""The learning rate of every step of every style."""

import itertools
import math

import pytest

from calm_megatron.config.schema import OptimizerConfig
from calm_megatron.train.schedule import learning_rate

ITERS = 100
LR, MIN_LR = 1e-3, 1e-4


def rates(iters: int = ITERS, **settings: object) -> list[float]:
    """The learning rate of each step, and of the one that would follow."""
    config = OptimizerConfig(**{"lr": LR, **settings})  # type: ignore[arg-type]
    return [learning_rate(step, config, iters) for step in range(iters + 1)]


STYLES = {
    "constant": {},
    "linear": {"min_lr": MIN_LR},
    "cosine": {"min_lr": MIN_LR},
    "WSD": {"min_lr": MIN_LR, "lr_wsd_decay_iters": 30},
}


@pytest.mark.parametrize("style", STYLES)
def test_every_style_warms_up_linearly(style: str) -> None:
    warm = rates(lr_decay_style=style, lr_warmup_iters=10, **STYLES[style])
    assert warm[:10] == pytest.approx([LR * (step + 1) / 10 for step in range(10)])
    assert warm[0] > 0


@pytest.mark.parametrize("style", STYLES)
def test_without_warm_up_the_first_step_is_full(style: str) -> None:
    assert rates(lr_decay_style=style, **STYLES[style])[0] == LR


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_after_the_warm_up_it_never_rises_and_never_leaves_its_bounds(style: str, warmup: int) -> None:
    all_rates = rates(lr_decay_style=style, lr_warmup_iters=warmup, **STYLES[style])
    after = all_rates[max(warmup - 1, 0) :]
    assert max(all_rates) == LR == after[0]
    assert all(later <= earlier for earlier, later in itertools.pairwise(after))
    assert min(after) >= min(MIN_LR, after[0])


@pytest.mark.parametrize("style", ["linear", "cosine", "WSD"])
def test_min_lr_is_reached_at_the_end_and_kept(style: str) -> None:
    config = OptimizerConfig(lr=LR, lr_decay_style=style, lr_warmup_iters=10, **STYLES[style])  # type: ignore[arg-type]
    assert learning_rate(ITERS, config, ITERS) == pytest.approx(MIN_LR)
    assert learning_rate(ITERS - 1, config, ITERS) > MIN_LR
    assert learning_rate(10 * ITERS, config, ITERS) == pytest.approx(MIN_LR)


def test_constant_stays() -> None:
    assert rates(lr_warmup_iters=10)[10:] == [LR] * 91


def test_linear_is_a_line_from_the_end_of_the_warm_up() -> None:
    line = rates(lr_decay_style="linear", lr_warmup_iters=20, min_lr=MIN_LR)
    assert line[20] == pytest.approx(LR)
    assert line[60] == pytest.approx((LR + MIN_LR) / 2)
    steps = {round(later - earlier, 12) for earlier, later in itertools.pairwise(line[20:])}
    assert steps == {round(-(LR - MIN_LR) / 80, 12)}


def test_cosine_is_half_a_wave() -> None:
    wave = rates(lr_decay_style="cosine", lr_warmup_iters=20, min_lr=MIN_LR)
    for step in range(20, 101):
        share = (1 + math.cos(math.pi * (step - 20) / 80)) / 2
        assert wave[step] == pytest.approx(MIN_LR + (LR - MIN_LR) * share)


@pytest.mark.parametrize("style", ["linear", "cosine", "exponential"])
def test_wsd_is_flat_until_its_decay(style: str) -> None:
    wsd = rates(
        lr_decay_style="WSD", lr_warmup_iters=10, min_lr=MIN_LR, lr_wsd_decay_iters=30, lr_wsd_decay_style=style
    )
    assert wsd[10:71] == [LR] * 61
    assert wsd[71] < LR
    half = {
        "linear": (LR + MIN_LR) / 2,
        "cosine": (LR + MIN_LR) / 2,
        "exponential": math.sqrt(LR * MIN_LR),
    }
    assert wsd[85] == pytest.approx(half[style])
    assert wsd[100] == pytest.approx(MIN_LR)


@pytest.mark.parametrize("style", ["linear", "cosine", "WSD"])
def test_lr_decay_iters_moves_the_end(style: str) -> None:
    early = rates(lr_decay_style=style, lr_decay_iters=60, **STYLES[style])
    assert early[:61] == pytest.approx(rates(60, lr_decay_style=style, **STYLES[style]))
    assert early[60:] == pytest.approx([MIN_LR] * 41)


def test_a_longer_run_with_the_same_end_has_the_same_rates() -> None:
    """So that a run can be stopped and gone on with."""
    settings = {"lr_decay_style": "cosine", "lr_decay_iters": 80, "lr_warmup_iters": 5}
    assert rates(50, **settings) == rates(100, **settings)[:51]
