"""The layouts that must all give the run of one rank: a quick part for every test run, and all of them."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tests.small_runs import AR, CALM, DIFFUSION, FLOW, TRAINED_AUTOENCODER, settings

_IN_8_HEADS = ["model.num_attention_heads=8", "model.num_query_groups=4"]
"""Eight heads in four groups divide among four tensor ranks."""
BASES = {
    "calm": [*CALM, *_IN_8_HEADS],
    **{f"calm_k{K}": [*CALM, *_IN_8_HEADS, f"model.patch_size={K}"] for K in (1, 2, 8)},
    "diffusion": [*DIFFUSION, *_IN_8_HEADS],
    "flow": [*FLOW, *_IN_8_HEADS],
    "diffusion_k2": [*DIFFUSION, *_IN_8_HEADS, "model.patch_size=2"],
    "flow_k8": [*FLOW, *_IN_8_HEADS, "model.patch_size=8"],
    "ar": [*AR, *_IN_8_HEADS],
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
    def patch_size(self) -> int:
        """K of a CALM, and of the baseline 1."""
        return int(dict(text.split("=", 1) for text in BASES[self.model])["model.patch_size"])

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
            "evaluation__rollout_positions": 6 if self.patch_size < 4 and self.pipe == 1 else 0,
        }


def autoencoders(folder: Path, corpus: Path, layouts: Iterable[Layout]) -> list[list[str]]:
    """Overrides of the runs of the autoencoders that `overrides` names, one for each K."""
    return [
        settings(
            TRAINED_AUTOENCODER,
            run__directory=folder / f"autoencoder_{patch_size}",
            data__data_path=corpus,
            model__patch_size=patch_size,
        )
        for patch_size in sorted({layout.patch_size for layout in layouts if layout.model != "ar"})
    ]


def overrides(layout: Layout, folder: Path, name: str, corpus: Path, **changes: object) -> list[str]:
    """Overrides of a run in `folder / name`, with the autoencoder of its K beside it."""
    changes = {"run__directory": folder / name, "data__data_path": corpus, **layout.changes(), **changes}
    if layout.model != "ar":
        changes["model__autoencoder"] = folder / f"autoencoder_{layout.patch_size}"
    return settings(BASES[layout.model], **changes)


QUICK = (
    Layout(pipe=2, zero=1, recompute=True),
    Layout(tensor=4, micro_batch=4),
    Layout(tensor=4, sequence_parallel=True, zero=3, micro_batch=4),
    Layout(pipe=4, micro_batch=1),
    Layout(tensor=2, pipe=2, sequence_parallel=True, zero=1, recompute=True, micro_batch=4),
    Layout(pipe=2, data=2),
    Layout(tensor=2, data=2, sequence_parallel=True, zero=2),
    Layout("ar", tensor=2, pipe=2, sequence_parallel=True, zero=1, micro_batch=4),
    Layout("ar", pipe=4, zero=1),
    Layout("calm_k2", tensor=2, pipe=2, sequence_parallel=True, micro_batch=4),
    Layout(tensor=2, pipe=2, sequence_parallel=True, zero=1, precision="bf16", micro_batch=4),
    Layout(pipe=2, data=2, zero=1, precision="fp16"),
    Layout("diffusion", tensor=2, pipe=2, sequence_parallel=True, zero=1, recompute=True, micro_batch=4),
    Layout("diffusion", tensor=2, data=2, zero=3),
    Layout("flow", pipe=4, micro_batch=1),
    Layout("flow", tensor=2, data=2, sequence_parallel=True, zero=1, precision="bf16", micro_batch=4),
)
"""Each kind once that golden figures and test_layouts.py do not hold in another way; the whole matrix has the rest."""


def every_layout() -> Iterator[Layout]:
    """All that fit on eight ranks; recomputation, the size of micro-batches and the rarer models alternate."""
    alternate = itertools.cycle(itertools.product((False, True), (1, 2, 4)))
    others = itertools.cycle(("calm_k1", "calm_k8", "diffusion_k2", "flow_k8"))
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
        for model in ("ar", "calm_k2", "diffusion", "flow", next(others)):
            yield replace(place, model=model, sequence_parallel=tensor > 1, zero=1)
        for precision in ("bf16", "fp16"):
            yield replace(place, sequence_parallel=tensor > 1, zero=1, precision=precision)
