"""The layouts that must all give the run of one rank: a quick part for every test run, and all of them."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tests.small_runs import AR, CALM

CALM_IN_8_HEADS = [*CALM, "model.num_attention_heads=8", "model.num_query_groups=4"]
"""Eight heads in four groups divide among four tensor ranks."""
BASES = {
    "calm": CALM_IN_8_HEADS,
    "calm_k2": [*CALM_IN_8_HEADS, "model.patch_size=2"],
    "ar": [*AR, "model.num_attention_heads=8", "model.num_query_groups=4"],
}


@dataclass(frozen=True)
class Layout:
    """A model on tensor x pipe x data ranks."""

    model: str = "calm"
    tensor: int = 1
    pipe: int = 1
    data: int = 1
    sequence_parallel: bool = False
    zero: int = 0
    recompute: bool = False
    micro_batch: int = 2
    precision: str = "fp32"

    @property
    def ranks(self) -> int:
        """Size of the world."""
        return self.tensor * self.pipe * self.data

    @property
    def name(self) -> str:
        """Of its run folder and its test."""
        parts = [self.model, f"tp{self.tensor}", f"pp{self.pipe}", f"dp{self.data}", f"zero{self.zero}"]
        parts += ["sp"] * self.sequence_parallel + ["recompute"] * self.recompute
        return "_".join([*parts, f"mbs{self.micro_batch}", self.precision])

    @property
    def reference(self) -> "Layout":
        """The run of one rank that it must give."""
        return Layout(model=self.model)

    def changes(self) -> dict[str, object]:
        """Settings, for `small_runs.settings`."""
        return {
            "parallel__tensor_model_parallel_size": self.tensor,
            "parallel__pipeline_model_parallel_size": self.pipe,
            "parallel__sequence_parallel": self.sequence_parallel,
            "parallel__zero_stage": self.zero,
            "train__recompute_granularity": "full" if self.recompute else "none",
            "train__micro_batch_size": self.micro_batch,
            "train__precision": self.precision,
        }


QUICK = (
    Layout(pipe=2),
    Layout(pipe=2, zero=1, recompute=True),
    Layout("calm_k2", pipe=2),
    Layout("ar", pipe=2, zero=1),
    Layout(tensor=4, micro_batch=4),
    Layout(tensor=4, sequence_parallel=True, zero=3),
    Layout(pipe=4, micro_batch=1),
    Layout(tensor=2, pipe=2),
    Layout(tensor=2, pipe=2, sequence_parallel=True, zero=1, recompute=True),
    Layout(pipe=2, data=2, zero=1),
    Layout(pipe=2, data=2),
    Layout(tensor=2, data=2, sequence_parallel=True, zero=2),
    Layout("ar", tensor=2, pipe=2, sequence_parallel=True, zero=1),
    Layout("ar", pipe=4, zero=1),
    Layout("calm_k2", tensor=2, pipe=2, sequence_parallel=True),
    Layout(tensor=2, pipe=2, sequence_parallel=True, zero=1, precision="bf16"),
    Layout(pipe=2, data=2, zero=1, precision="bf16"),
    Layout(pipe=2, data=2, zero=1, precision="fp16"),
    Layout(tensor=2, data=2, zero=2, precision="fp16"),
)


def every_layout() -> Iterator[Layout]:
    """All that fit on eight ranks; recomputation and the size of micro-batches alternate."""
    alternate = itertools.cycle(itertools.product((False, True), (1, 2, 4)))
    for tensor, pipe, data in itertools.product((1, 2, 4), (1, 2, 4), (1, 2)):
        if not 1 < tensor * pipe * data <= 8:
            continue
        place = Layout(tensor=tensor, pipe=pipe, data=data)
        for sequence_parallel in (False, True) if tensor > 1 else (False,):
            for zero in range(4 if pipe == 1 else 2):
                recompute, micro_batch = next(alternate)
                yield replace(
                    place,
                    sequence_parallel=sequence_parallel,
                    zero=zero,
                    recompute=recompute,
                    micro_batch=micro_batch,
                )
        for model in ("ar", "calm_k2"):
            yield replace(place, model=model, sequence_parallel=tensor > 1, zero=1)
        yield replace(place, sequence_parallel=tensor > 1, zero=1, precision="bf16")
