"""Numbers as a person reads them."""

import math
from datetime import UTC, datetime

_NO_VALUE = "–"


def fixed(value: float, width: int = 8) -> str:
    """A figure of constant width, for columns: `  0.3012`, ` 1.2e+06`, `     nan`."""
    plain = value == 0 or not math.isfinite(value) or 1e-3 <= abs(value) < 1e3
    return f"{value:{width}.4f}" if plain else f"{value:{width}.1e}"


def short(value: float | None, digits: int = 3) -> str:
    """A figure with so many significant digits and no needless zeros; a dash for none."""
    if value is None:
        return _NO_VALUE
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    if 1e-3 <= abs(value) < 1e6:
        decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
        text = f"{value:,.{decimals}f}"
        return text.rstrip("0").rstrip(".") if decimals else text
    return f"{value:.{digits - 1}e}"


def count(value: float | None) -> str:
    """A large number with its unit letter: `987`, `12.3k`, `371M`, `1.82B`."""
    if value is None or not math.isfinite(value):
        return _NO_VALUE
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:  # so that three digits never become 1000
            scaled = value / size
            decimals = min(max(2 - math.floor(math.log10(abs(scaled))), 0), 2)
            return f"{scaled:.{decimals}f}{letter}"
    return f"{value:.0f}"


def percent(share: float | None) -> str:
    """A share as per cent, with more decimals the nearer it is to all: `87.3 %`, `99.87 %`, `99.987 %`."""
    if share is None or not math.isfinite(share):
        return _NO_VALUE
    if share >= 1:
        return f"{100 * share:.0f} %"
    missing = 1 - share
    decimals = min(max(math.floor(-math.log10(missing)), 1), 4)
    return f"{100 * min(share, 0.999999):.{decimals}f} %"  # what is not all must not be rounded to all


def duration(seconds: float | None) -> str:
    """A time in the two units that matter: `48s`, `12m 05s`, `3h 04m`, `2d 03h`."""
    if seconds is None or not math.isfinite(seconds):
        return _NO_VALUE
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    minutes = whole // 60
    if minutes < 24 * 60:
        return f"{minutes // 60}h {minutes % 60:02d}m"
    hours = minutes // 60
    return f"{hours // 24}d {hours % 24:02d}h"


def moment(unix_seconds: float) -> str:
    """A point in time: `2026-01-31 17:05:09`, UTC."""
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
