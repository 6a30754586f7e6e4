"""Ranks of the memory benchmark: measures what weights, gradients and optimizer state take at their peak in a step.

Usage: torchrun ... -m benchmarks.memory_worker JOBS FOLDER, with jobs {"name": [settings, ...]}.

Looked at before each gradient enters a bucket, before a bucket is let go, before anything is exchanged, and before and
after AdamW's step: in between nothing of these is made. Activations do not count.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor

from benchmarks.small_run import measure_second_steps
from benchmarks.wire import watching
from calm_megatron.train.engine import Engine

PARTS = ("weights", "gradients", "moments", "master weights", "bucket", "in exchange")

_MOMENTS = ("reduce_independent_p_g_buckets_and_remove_grads", "_release_ipg_buffers")
"""Methods of ZeRO's optimizers before which gradients and their copies are the most."""


class Peak:
    """The most bytes of one look, by part."""

    def __init__(self, trained: Engine) -> None:
        self.trained = trained
        self.optimizer = trained.engine.optimizer
        self.inner = getattr(self.optimizer, "optimizer", self.optimizer)
        """torch's AdamW, within ZeRO's optimizer."""
        self.parts: dict[str, int] = {}

        for name in _MOMENTS:
            if hasattr(self.optimizer, name):
                setattr(self.optimizer, name, self._looked_at(getattr(self.optimizer, name)))
        self.inner.register_step_pre_hook(lambda *_: self.look([]))
        self.inner.register_step_post_hook(lambda *_: self.look([]))

    def _looked_at(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.look([])
            return method(*arguments, **options)

        return call

    def look_at_exchange(self, group: dist.ProcessGroup, collective: str, tensors: list[Tensor]) -> None:
        """Look before a collective, for `watching`."""
        self.look(tensors)

    def look(self, exchanged: list[Tensor]) -> None:
        """Count each piece of memory once, for the first part that has it."""
        seen: set[int] = set()
        parts = dict.fromkeys(PARTS, 0)
        for part, tensor in self._tensors(exchanged):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                parts[part] += storage.nbytes()
        if sum(parts.values()) > sum(self.parts.values()):
            self.parts = parts

    def _tensors(self, exchanged: list[Tensor]) -> Iterator[tuple[str, Tensor]]:
        weights = list(self.trained.model.parameters())
        for weight in weights:
            yield "weights", getattr(weight, "ds_tensor", weight).data
            yield "weights", weight.data
        own = vars(self.optimizer) if self.optimizer is not self.inner else {}
        masters = [weight for group in self.inner.param_groups for weight in group["params"]]
        for state in self.inner.state.values():
            yield from (("moments", tensor) for tensor in _within(state))
        yield from (
            ("master weights", tensor) for tensor in _within([masters, own.get("fp32_partitioned_groups_flat")])
        )
        for name in ("ipg_buckets", "ipg_bucket"):
            yield from (("bucket", tensor) for tensor in _within(own.get(name)))
        for weight in [*weights, *masters]:
            yield from (("gradients", tensor) for tensor in _within([weight.grad, getattr(weight, "grad_accum", None)]))
        yield from (("gradients", tensor) for tensor in _within(own))
        yield from (("in exchange", tensor) for tensor in [*exchanged, *_at_work()])


def _at_work() -> Iterator[Tensor]:
    """What the functions of DeepSpeed that are running hold in their variables: copies of gradients on their way."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_globals.get("__name__", "").startswith("deepspeed.runtime"):
            yield from _within(dict(frame.f_locals))


def _within(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """Tensors in lists, dictionaries and DeepSpeed's small records of them."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, dict):
        for item in value.values():
            yield from _within(item, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for item in value:
            yield from _within(item, depth - 1)
        yield from _within(getattr(value, "flat_partition", None), depth - 1)
    elif depth and type(value).__name__.startswith("IPGBucket"):
        yield from _within(vars(value), depth - 1)


def peak_of(trained: Engine, step: Callable[[], object]) -> dict[str, int]:
    """The peak of the step, by part."""
    peak = Peak(trained)
    with watching(peak.look_at_exchange):
        step()
    return peak.parts


if __name__ == "__main__":
    measure_second_steps(peak_of)
