"""Copies of what is to be written, in the host's memory, while training changes the originals."""

from collections.abc import Iterable

import torch
from torch import Tensor

from calm_megatron.checkpoint.pieces import Piece, Place


class Snapshot:
    """Holds the last copy; its memory serves the next one, as to touch new memory takes longer than to copy."""

    def __init__(self) -> None:
        self._values: dict[Place, dict[str, Tensor]] = {}

    def take(self, pieces: Iterable[Piece]) -> list[Piece]:
        """Copy; what was taken before is overwritten."""
        before, self._values = self._values, {}
        copies = []
        for piece in pieces:
            room = before.get(piece.place) or {
                kind: torch.empty_like(value, device="cpu") for kind, value in piece.values.items()
            }
            for kind, value in piece.values.items():
                room[kind].copy_(value.detach())
            self._values[piece.place] = room
            copies.append(Piece(piece.place, room))
        return copies
