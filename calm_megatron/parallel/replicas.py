"""Weights that several ranks hold a copy of must stay equal to the last bit; this says so, or which is not."""

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from calm_megatron.config.errors import UserError

_PIECE = 1 << 22
"""Bytes of a weight that are looked at together."""


def check_replicas(weights: Mapping[str, Tensor], group: dist.ProcessGroup | None, among: str) -> None:
    """Compare the copies of the ranks of a group; called by all of them.

    Args:
        weights: this rank's copies, the same names in the same order on all ranks.
        group: who holds copies.
        among: name of these ranks in the message, such as "tensor ranks".

    Raises:
        UserError: naming the weights that differ, on all ranks alike.
    """
    if not weights:
        return
    own = torch.stack(list(_checksums(weights.values())))
    copies = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(copies, own, group=group)
    differs = torch.stack([copy != copies[0] for copy in copies]).any(dim=0).tolist()
    names = [name for name, differ in zip(weights, differs, strict=True) if differ]
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise UserError(
            f"copies of these weights differ among the {among}: {', '.join(names[:5])}{more}",
            f"rank {dist.get_rank()} and the others of its group",
            "go on from the last checkpoint; if it happens again, suspect a device or report a fault with the layout",
        )


def _checksums(tensors: Iterable[Tensor]) -> Iterable[Tensor]:
    """One whole number a tensor, of its bits: equal for equal tensors, on the tensor's device."""
    for tensor in tensors:
        total = torch.zeros((), dtype=torch.int64, device=tensor.device)
        # In pieces, as a byte becomes a whole number of eight.
        for number, bits in enumerate(tensor.detach().contiguous().view(-1).view(torch.uint8).split(_PIECE)):
            place = torch.arange(number * _PIECE, number * _PIECE + len(bits), device=bits.device) % 8191 + 1
            total += (bits * place).sum()
        yield total
