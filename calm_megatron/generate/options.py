"""Settings of generation, checked when they are made."""

from dataclasses import dataclass
from typing import Final, Literal

from calm_megatron.config.errors import UserError

_TOLERANCE: Final = 0.0025


def temperature_order(temperature: float) -> int:
    """Return n of the temperature 1/n.

    Raises:
        UserError: the temperature is no 1/n; the message names the nearest ones.
    """
    if not 0.0 < temperature <= 1.0 + _TOLERANCE:
        raise UserError(f"temperature {temperature:g} is not in (0, 1]", "temperature", "use 1, 0.5, 0.333, 0.25, ...")
    order = max(1, round(1.0 / temperature))
    if abs(order * temperature - 1.0) > _TOLERANCE:
        below, above = int(1.0 / temperature), int(1.0 / temperature) + 1
        raise UserError(
            f"temperature {temperature:g} is not 1/n for a whole n, which this sampler needs",
            "temperature",
            f"use {1 / below:.4g} (1/{below}) or {1 / above:.4g} (1/{above})",
        )
    return order


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How to continue a prompt."""

    max_new_tokens: int
    temperature: float = 1.0
    """1/n for a whole n."""
    num_samples: int = 200
    """Samples in a pool; used below temperature 1 and for a remainder of the prompt."""
    sampling_steps: int | None = None
    """Steps to a sample of a diffusion or flow head; none means those of the model's config."""
    seed: int = 0
    """Root of all randomness."""
    partial_patch: Literal["constrain", "pad"] = "constrain"
    """What becomes of prompt tokens behind the last whole patch, see `decode`."""
    max_pools: int = 8
    """Pools drawn for a remainder before giving up."""
    max_batch_size: int = 64
    """Rows computed at once."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("max_new_tokens", "num_samples", "max_pools", "max_batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}", name, "give 1 or more")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}", "seed", "give 0 or more")
        if self.num_samples < self.order:
            raise UserError(
                f"a pool of {self.num_samples} samples cannot hold {self.order} equal ones, "
                f"which temperature {self.temperature:.4g} looks for",
                "num_samples",
                f"draw at least {self.order} samples, better some hundred",
            )

    @property
    def order(self) -> int:
        """n of the temperature 1/n."""
        return temperature_order(self.temperature)
