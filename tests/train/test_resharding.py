"""A run goes on in another layout: weights and moments are the same to the last bit, the next losses nearly so.

All jobs of a world size share a launch; a run's first half comes before its second.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from calm_megatron.checkpoint.load import saved_state
from calm_megatron.checkpoint.pieces import KINDS
from calm_megatron.telemetry.run_log import read_log
from tests.train.launches import LAYOUTS_WORKER, Program, launch
from tests.train.layout_matrix import Layout, autoencoders, overrides

FIRST_HALF, ALL = 5, 15
BATCH = {"train__global_batch_size": 12, "optimizer__lr_decay_iters": ALL}


class Move(NamedTuple):
    """From one layout to another."""

    before: Layout
    after: Layout

    @property
    def name(self) -> str:
        """Of the run folder and of the test."""
        return f"{self.before.name}-to-{self.after.name}"


def layout(tensor: int = 1, pipe: int = 1, data: int = 1, zero: int = 0, sp: bool = False, **more: object) -> Layout:
    """Micro-batches of one, as twelve sequences divide among three data ranks too."""
    return Layout(tensor=tensor, pipe=pipe, data=data, zero=zero, sequence_parallel=sp, **{"micro_batch": 1, **more})  # type: ignore[arg-type]


QUICK = (
    Move(layout(tensor=2, pipe=2, zero=1), layout(pipe=4)),
    Move(layout(tensor=4, zero=3, sp=True), layout(tensor=2, data=2, zero=2)),
    Move(layout(data=2, zero=3), layout(tensor=2, zero=1)),
    Move(layout(), layout(data=2, zero=2, micro_batch=2)),
    Move(layout(tensor=2, zero=1, precision="bf16"), layout(pipe=2, zero=1, precision="bf16")),
    Move(layout(model="ar", data=2, zero=3), layout(model="ar", pipe=2, zero=1)),
    Move(layout(model="diffusion", pipe=2, zero=1), layout(model="diffusion", tensor=2, sp=True, zero=2)),
    Move(layout(model="flow", data=2, zero=3), layout(model="flow", pipe=2, zero=1)),
)
EIGHT = layout(tensor=2, pipe=2, data=2, zero=1)
MORE = (
    Move(EIGHT, EIGHT),
    Move(layout(tensor=2, pipe=2, data=2, zero=1), layout()),
    Move(layout(), layout(tensor=2, pipe=2, data=2, zero=1, sp=True)),
    Move(layout(data=2), layout(data=3, zero=2)),
    Move(layout(data=3, zero=1), layout(data=4, zero=3)),
    Move(layout(pipe=4, zero=1), layout(tensor=2, pipe=2, sp=True)),
    Move(layout(data=4, zero=2), layout(tensor=4, pipe=2, zero=1)),
    Move(layout(tensor=2, pipe=2, data=2, zero=1), layout(tensor=4, data=2, zero=3)),
    Move(layout(tensor=2, data=2, zero=2, precision="bf16"), layout(tensor=4, pipe=2, zero=1, precision="bf16")),
    Move(layout(model="calm_k2", tensor=2, zero=2), layout(model="calm_k2", pipe=2, data=2, zero=1)),
)


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory, small_corpus: Path, program: Program) -> Callable[..., Path]:
    """Trains the halves of moves and the runs that they are held against; returns the folder with all."""
    folder = tmp_path_factory.mktemp("moves")

    def job(layout: Layout, name: str, iters: int) -> list[str]:
        return overrides(layout, folder, name, small_corpus, **BATCH, train__train_iters=iters)

    def run(moves: Iterable[Move]) -> Path:
        first: dict[int, list[list[str]]] = defaultdict(list)
        second: dict[int, list[list[str]]] = defaultdict(list)
        moves = list(moves)
        first[1] = autoencoders(folder, small_corpus, [move.before for move in moves])
        first[1] += [
            job(layout(model=model), model, ALL) for model in dict.fromkeys(move.before.model for move in moves)
        ]
        if any(move.before == EIGHT for move in moves):
            first[8].append(job(EIGHT, EIGHT.name, ALL))
        for move in moves:
            first[move.before.ranks].append(job(move.before, move.name, FIRST_HALF))
            second[move.after.ranks].append(job(move.after, move.name, ALL))
        for number, (ranks, jobs) in enumerate([*sorted(first.items()), *sorted(second.items())]):
            launch(program, LAYOUTS_WORKER, folder / f"jobs_{number}.json", jobs, ranks, words=["record"], timeout=1800)
        return folder

    return run


@pytest.fixture(scope="module")
def quick(moved: Callable[..., Path]) -> Path:
    """Folder with a few moves."""
    return moved(QUICK)


@pytest.fixture(scope="module")
def more(moved: Callable[..., Path]) -> Path:
    """Folder with the moves that need more ranks."""
    return moved(MORE)


@pytest.mark.parametrize("move", QUICK, ids=lambda move: move.name)
def test_a_run_goes_on_in_another_layout(quick: Path, move: Move) -> None:
    demand_the_same_run(quick, move)


@pytest.mark.slow
@pytest.mark.parametrize("move", MORE, ids=lambda move: move.name)
def test_a_run_goes_on_in_any_layout(more: Path, move: Move) -> None:
    demand_the_same_run(more, move)


@pytest.mark.slow
def test_in_the_same_layout_it_is_the_run_that_was_never_stopped(more: Path) -> None:
    resumed, straight = more / Move(EIGHT, EIGHT).name, more / EIGHT.name
    for name in ("loss", "grad_norm"):
        assert read_log(resumed / "log.jsonl").series(name) == read_log(straight / "log.jsonl").series(name)
    ours, theirs = (saved_state(run / "checkpoints" / f"step_{ALL:08d}") for run in (resumed, straight))
    for name in ours.names():
        for kind in KINDS:
            assert torch.equal(ours.whole(kind, name), theirs.whole(kind, name)), f"{kind} of {name}"


def demand_the_same_run(folder: Path, move: Move) -> None:
    """Compare what was saved to what was taken over, bit by bit, and the losses to those of one rank in one go."""
    run = folder / move.name
    saved = saved_state(run / "checkpoints" / f"step_{FIRST_HALF:08d}")
    taken_over = saved_state(run / "initial" / "checkpoints" / f"step_{FIRST_HALF:08d}")
    assert saved.names() == taken_over.names()
    for name in saved.names():
        for kind in KINDS:
            assert torch.equal(saved.whole(kind, name), taken_over.whole(kind, name)), f"{kind} of {name}"
    straight = read_log(folder / move.before.model / "log.jsonl")
    for name in ("loss", "grad_norm"):
        ours, theirs = read_log(run / "log.jsonl").series(name)[1], straight.series(name)[1]
        close = {"fp32": 1e-4, "bf16": 2**-8 if name == "loss" else 2**-4}[move.before.precision]
        assert len(ours) == ALL
        assert ours == pytest.approx(theirs, rel=close)
