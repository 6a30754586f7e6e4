"""Settings of generation, checked when they are made."""

from dataclasses import dataclass
from typing import Final, Literal

from calm_megatron.config.errors import UserError

_TOLERANCE: Final = 0.0025
"""How far n * T may be from 1: lets 0.333 and 0.167 stand for 1/3 and 1/6."""


@dataclass(frozen=True)
class Exponent:
    """1/T, to which a temperature raises probabilities: its whole part n >= 1, and a fraction in [0, 1)."""

    whole: int = 1
    fraction: float = 0.0

    @staticmethod
    def of(temperature: float) -> "Exponent":
        """The exponent of a temperature in (0, 1]; of one very near to 1/n it is n.

        Raises:
            UserError: the temperature lies outside.
        """
        if not 0.0 < temperature <= 1.0 + _TOLERANCE:
            raise UserError(
                f"temperature {temperature:g} is not in (0, 1]", "temperature", "use 1, or less for likelier text"
            )
        nearest = max(1, round(1.0 / temperature))
        if abs(nearest * temperature - 1.0) <= _TOLERANCE:
            return Exponent(nearest)
        whole = int(1.0 / temperature)
        return Exponent(whole, 1.0 / temperature - whole)

    @property
    def value(self) -> float:
        """As one number."""
        return self.whole + self.fraction

    @property
    def is_one(self) -> bool:
        """Whether it changes nothing."""
        return self.whole == 1 and not self.fraction


Method = Literal["batch", "exact", "logits"]
"""How a temperature is reached."""


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How to continue a prompt."""

    max_new_tokens: int
    temperature: float = 1.0
    """In (0, 1]."""
    method: Method | None = None
    """`batch` chooses from a pool of samples, `exact` draws until samples agree (exact.py), `logits` divides them.

    None takes `logits` where the model has them (a token-level one), and else `batch`."""
    num_samples: int = 200
    """Samples in a pool of the method `batch`; used below temperature 1 and for a remainder of the prompt."""
    max_draws: int = 100_000
    """Samples that the method `exact` draws for one patch or token before it gives up."""
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
        for name in ("max_new_tokens", "num_samples", "max_draws", "max_pools", "max_batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}", name, "give 1 or more")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}", "seed", "give 0 or more")
        needed, place = self.exponent.whole, "max_draws" if self.method == "exact" else "num_samples"
        if self.method != "logits" and getattr(self, place) < needed:
            raise UserError(
                f"{place} = {getattr(self, place)} samples cannot hold {needed} equal ones, "
                f"which temperature {self.temperature:.4g} looks for",
                place,
                f"draw at least {needed} samples, better some hundred",
            )

    @property
    def exponent(self) -> Exponent:
        """1/T."""
        return Exponent.of(self.temperature)
