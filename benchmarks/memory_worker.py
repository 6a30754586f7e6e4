"""Ranks of the memory benchmark: measures what weights, gradients and optimizer state take at their peak in a step.

Usage: torchrun ... -m benchmarks.memory_worker JOBS FOLDER, with jobs {"name": [settings, ...]}.

Looked at when gradients or weights are about to be exchanged, when AdamW is about to step and when it has stepped: in
between nothing of these is made. Activations do not count.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.small_run import RandomTokens, engine, jobs_of_rank, micro_batches, small, start
from benchmarks.wire import exchanging
from calm_megatron.parallel import grid as parallel
from calm_megatron.train.engine import Engine

PARTS = ("weights", "gradients", "moments", "master weights", "bucket", "in exchange")


class Peak:
    """The most bytes of one look, by part."""

    def __init__(self, trained: Engine) -> None:
        self.trained = trained
        self.parts: dict[str, int] = {}

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
        outer = self.trained.engine.optimizer
        inner = getattr(outer, "optimizer", outer)
        for weight in weights:
            yield "weights", getattr(weight, "ds_tensor", weight).data
            yield "weights", weight.data
        masters = [weight for group in inner.param_groups for weight in group["params"]]
        for state in inner.state.values():
            yield from (("moments", value) for value in state.values() if isinstance(value, Tensor))
        yield from (("master weights", weight.data) for weight in masters)
        attributes = {**vars(outer), **vars(self.trained.engine)} if outer is not inner else {}
        for name, value in attributes.items():
            if name.startswith("ipg_bucket") or "bucket" in name:
                yield from (("bucket", tensor) for tensor in _within(value))
        for weight in [*weights, *masters]:
            for gradient in (weight.grad, getattr(weight, "grad_accum", None)):
                if gradient is not None:
                    yield "gradients", gradient
        for value in attributes.values():
            yield from (("gradients", tensor) for tensor in _within(value))
        yield from (("in exchange", tensor) for tensor in exchanged)


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


def main() -> None:
    """Run the jobs in their order, and write the peak of the second step of each, by part."""
    jobs, findings = jobs_of_rank(sys.argv)
    found = {}
    for name, settings in jobs.items():
        config = small(*settings)
        grid = start(config)
        trained = engine(RandomTokens(config, grid))
        trained.train_step(micro_batches(config, grid, 0), 0)
        peak = Peak(trained)
        outer = trained.engine.optimizer
        inner = getattr(outer, "optimizer", outer)
        hooks = [
            inner.register_step_pre_hook(lambda *_, peak=peak: peak.look([])),
            inner.register_step_post_hook(lambda *_, peak=peak: peak.look([])),
        ]
        with exchanging(peak.look):
            trained.train_step(micro_batches(config, grid, 1), 1)
        for hook in hooks:
            hook.remove()
        found[name] = peak.parts
        trained.engine.destroy()
    findings.write_text(json.dumps(found))
    parallel.stop()


if __name__ == "__main__":
    main()
