"""Counts what a rank sends: every collective of torch.distributed, whoever calls it, by group, kind and purpose.

All callers (torch's functions, megatron-core's and DeepSpeed's own names for them) end at the methods of
`ProcessGroup`, so these are what is wrapped.

Bytes are those that each rank sends when the collective runs as a ring of n ranks: 2 (n - 1) / n of the tensor for an
all-reduce, (n - 1) / n of the whole tensor for all-gather, reduce-scatter, reduce and broadcast, all of it for a send.
A backend may do otherwise (gloo often does); what it is asked for stays the same.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from calm_megatron.plan.traffic import Kind

SINGLE_FIGURES = 64
"""Losses, norms and flags: tensors of at most so many bytes."""

_ALL_REDUCE, _GATHER, _SCATTER = ("all-reduce", 0), ("all-gather", 0), ("reduce-scatter", 1)
_METHODS = {
    "allreduce": _ALL_REDUCE,
    "allreduce_coalesced": _ALL_REDUCE,
    "allgather": _GATHER,
    "_allgather_base": _GATHER,
    "allgather_coalesced": _GATHER,
    "allgather_into_tensor_coalesced": _GATHER,
    "all_gather_single": _GATHER,
    "all_gather_single_coalesced": _GATHER,
    "reduce_scatter": _SCATTER,
    "_reduce_scatter_base": _SCATTER,
    "reduce_scatter_tensor_coalesced": _SCATTER,
    "reduce_scatter_single": _SCATTER,
    "reduce_scatter_single_coalesced": _SCATTER,
    "reduce": ("reduce", 0),
    "broadcast": ("broadcast", 0),
    "send": ("send", 0),
}
"""Methods that send: the collective, and which argument holds the whole tensor."""
_UNCOUNTED = ("gather", "scatter", "alltoall", "alltoall_base", "all_to_all_single")

_PURPOSES = (
    ("TensorRanks.gather_samples", "samples"),
    ("TensorRanks.to_partial_work", "hidden states"),
    ("_CopyToRanks.backward", "hidden states"),
    ("_GatherFromSequenceParallelRegion.backward", "hidden states"),
    ("_summed_over_ranks", "copied weights"),
    ("PipelineEngine._exec_send_activations", "activations"),
    ("PipelineEngine._exec_send_grads", "activations' gradients"),
)
"""Functions on the way to a collective, and what it is for."""
_DATA = {
    ("data", "all-reduce"): "gradients",
    ("data", "reduce-scatter"): "gradients",
    ("data", "reduce"): "gradients",
    ("data", "all-gather"): "weights",
    ("data", "broadcast"): "weights",
}
"""What DeepSpeed exchanges among the data ranks, single figures aside."""


@contextmanager
def watching(look: Callable[[dist.ProcessGroup, str, list[Tensor]], None]) -> Iterator[None]:
    """Within the block, tell of each collective that sends: its group, its kind and the whole tensors."""

    def watched(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(group: dist.ProcessGroup, *arguments: Any, **options: Any) -> Any:
            if name in _UNCOUNTED:
                raise NotImplementedError(f"nothing is known of the volume of ProcessGroup.{name}")
            collective, place = _METHODS[name]
            look(group, collective, list(_flat(arguments[place])))
            return method(group, *arguments, **options)

        return call

    # Put back from the class's dictionary: read as an attribute, a method of C++ loses what binds it to the group.
    methods = {name: vars(dist.ProcessGroup)[name] for name in (*_METHODS, *_UNCOUNTED)}
    for name in methods:
        setattr(dist.ProcessGroup, name, watched(name, getattr(dist.ProcessGroup, name)))
    try:
        yield
    finally:
        for name, method in methods.items():
            setattr(dist.ProcessGroup, name, method)


SentRow = tuple[str, str, str, float]
"""Among whom, what for, by which collective, and how many bytes."""


class Counter:
    """Bytes that this rank sent, by kind."""

    def __init__(self) -> None:
        self.sent: dict[Kind, float] = defaultdict(float)

    def add(self, group: dist.ProcessGroup, collective: str, tensors: list[Tensor]) -> None:
        """Count one collective, for `watching`."""
        size, ranks = sum(tensor.numel() * tensor.element_size() for tensor in tensors), group.size()
        share = {"all-reduce": 2 * (ranks - 1) / ranks, "send": 1.0}.get(collective, (ranks - 1) / ranks)
        if share:
            among = "pipeline" if collective == "send" else name_of(group)
            purpose = _purpose()
            if purpose is None:
                purpose = "single figures" if size <= SINGLE_FIGURES else _DATA.get((among, collective), "other")
            self.sent[Kind(among, purpose, collective)] += share * size

    def rows(self) -> list[SentRow]:
        """The kinds in their order, each as [among, purpose, collective, bytes], for JSON."""
        return [(kind.among, kind.purpose, kind.collective, size) for kind, size in sorted(self.sent.items())]


def _flat(tensors: Tensor | Sequence[Any]) -> Iterator[Tensor]:
    """The tensors in a list of lists."""
    if isinstance(tensors, Tensor):
        yield tensors
    else:
        for item in tensors:
            yield from _flat(item)


def name_of(group: dist.ProcessGroup) -> str:
    """Which of the ranks a group joins: tensor, data or pipeline, or else the world."""
    ranks = set(dist.get_process_group_ranks(group))
    groups = {
        "tensor": parallel_state.get_tensor_model_parallel_group(),
        "data": parallel_state.get_data_parallel_group(),
        "pipeline": parallel_state.get_pipeline_model_parallel_group(),
    }
    return next((name for name, known in groups.items() if ranks == set(dist.get_process_group_ranks(known))), "world")


def _purpose() -> str | None:
    """By the functions on the way to here; none where they do not tell."""
    names = []
    frame = sys._getframe(2)
    while frame.f_back is not None:
        names.append((frame.f_globals.get("__name__", ""), frame.f_code.co_qualname))
        frame = frame.f_back
    for part, purpose in _PURPOSES:
        if any(name == part for _, name in names):
            return purpose
    return "matrices" if any(module.startswith("megatron.core.tensor_parallel") for module, _ in names) else None
