"""Ranks that measure what the forward passes of a step keep for the backward passes, at the most, in bytes.

Usage: torchrun ... -m benchmarks.activations_worker JOBS FOLDER, with jobs {"name": [settings, ...]}.

Weights do not count. Tensors that share their memory count once.
"""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.small_run import measure_second_steps
from calm_megatron.train.engine import Engine


class Kept:
    """The memory that saved tensors hold, now and at the most."""

    def __init__(self) -> None:
        self.holders: Counter[int] = Counter()
        self.now = self.peak = 0

    def pack(self, tensor: Tensor) -> "Tensor | Saved":
        """Called by torch for each tensor that it keeps."""
        if isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter):
            return tensor
        return Saved(tensor, self)


class Saved:
    """A tensor that is kept; the graph lets go of it in the backward pass."""

    def __init__(self, tensor: Tensor, kept: Kept) -> None:
        self.tensor, self.kept = tensor, kept
        storage = tensor.untyped_storage()
        self.place, self.size = storage.data_ptr(), storage.nbytes()
        kept.holders[self.place] += 1
        if kept.holders[self.place] == 1:
            kept.now += self.size
            kept.peak = max(kept.peak, kept.now)

    def __del__(self) -> None:
        self.kept.holders[self.place] -= 1
        if not self.kept.holders[self.place]:
            self.kept.now -= self.size


def peak_of(trained: Engine, step: Callable[[], object]) -> int:
    """The peak of the step."""
    kept = Kept()
    unpack: Callable[[Tensor | Saved], Tensor] = lambda held: held.tensor if isinstance(held, Saved) else held  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, unpack):
        step()
    return kept.peak


if __name__ == "__main__":
    measure_second_steps(peak_of)
