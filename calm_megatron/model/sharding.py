"""How one tensor rank's part of a weight and the whole weight become each other, by the table of names."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from calm_megatron.config.schema import ArConfig, BackboneConfig
from calm_megatron.model.names import AR_ENTRIES, CALM_ENTRIES, VOCABULARY, Entry, entry_of


def padded_vocab_size(vocab_size: int, tensor_size: int) -> int:
    """Rows of the embedding, so that all tensor ranks hold the same number; those beyond the vocabulary stay zero."""
    return -(-vocab_size // tensor_size) * tensor_size


@dataclass(frozen=True)
class Sharding:
    """The parts of a model's weights over the tensor ranks."""

    config: BackboneConfig
    rank: int
    size: int

    def is_cut(self, name: str) -> bool:
        """Whether ranks hold different parts of this weight; else each holds a copy."""
        return self.size > 1 and self._entry(name).cut != "whole"

    def whole_shape(self, name: str, part: torch.Size) -> tuple[int, ...]:
        """Shape of the weight of which this rank holds a part of shape `part`."""
        if name in VOCABULARY:
            return (self.config.vocab_size, part[1])
        entry = self._entry(name)
        return tuple(extent * self.size if axis == _axis(entry) else extent for axis, extent in enumerate(part))

    def part(self, name: str, whole: Tensor) -> Tensor:
        """This rank's part of a whole weight."""
        entry = self._entry(name)
        axis = _axis(entry)
        if axis is None or self.size == 1:
            return whole
        if name in VOCABULARY:
            whole = F.pad(whole, (0, 0, 0, padded_vocab_size(len(whole), self.size) - len(whole)))
        # Gate and up are cut one by one; query, key and value lie interleaved by group: a plain cut keeps groups whole.
        blocks = whole.chunk(len(entry.official)) if entry.join == "stack" else (whole,)
        return torch.cat([block.chunk(self.size, dim=axis)[self.rank] for block in blocks])

    def whole(self, name: str, parts: Sequence[Tensor]) -> Tensor:
        """The whole weight from the parts of all ranks, in their order."""
        entry = self._entry(name)
        axis = _axis(entry)
        if axis is None or self.size == 1:
            return parts[self.rank]
        count = len(entry.official) if entry.join == "stack" else 1
        blocks = zip(*(part.chunk(count) for part in parts), strict=True)
        whole = torch.cat([torch.cat(block, dim=axis) for block in blocks])
        return whole[: self.config.vocab_size] if name in VOCABULARY else whole

    def _entry(self, name: str) -> Entry:
        return entry_of(name, AR_ENTRIES if isinstance(self.config, ArConfig) else CALM_ENTRIES)[0]


def _axis(entry: Entry) -> int | None:
    return {"whole": None, "rows": 0, "columns": 1}[entry.cut]
