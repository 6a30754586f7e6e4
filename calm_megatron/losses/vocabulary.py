"""What is asked of logits over a vocabulary, a chunk of rows at a time: all of them are never in memory at once.

The cross-entropy forms its gradient in the forward pass: chunk by chunk, while the logits are there, and with no
product done twice. torch has such a function too (`torch.nn.functional.linear_cross_entropy` with chunking), but for
bf16 weights it gives the loss and adds up the weight's gradient in bf16; here both are fp32.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_LOGITS = 1 << 24
"""Logits of a chunk, at most (unless one row has more): 64 MiB in fp32."""
CACHED_LOGITS, FEWEST_COLUMNS = 1 << 20, 1024
"""The same where only the largest is asked for, on a CPU; and the part of the vocabulary that is taken at least."""


def linear_cross_entropy(hidden_SH: Tensor, weight_VH: Tensor, ids_S: Tensor) -> Tensor:
    """Mean cross-entropy, in nats and at least fp32, of tokens under the logits `hidden @ weight.T`; NaN of no tokens.

    The gradients are kept until the backward pass and used up by it, so there can be only one.
    """
    wanted = tuple(torch.is_grad_enabled() and each.requires_grad for each in (hidden_SH, weight_VH))
    loss: Tensor = _LinearCrossEntropy.apply(hidden_SH, weight_VH, ids_S, wanted)  # type: ignore[no-untyped-call]
    return loss


@torch.no_grad()
def linear_argmax(hidden_SH: Tensor, weight_VH: Tensor) -> Tensor:
    """The tokens (S,) of the largest logits, the first of equal ones.

    A chunk is all rows by some of the vocabulary: each weight is read once, and on a CPU the chunk stays in its cache.
    """
    count, vocabulary = len(hidden_SH), len(weight_VH)
    most = CACHED_LOGITS if hidden_SH.device.type == "cpu" else CHUNK_LOGITS
    best_S, token_S = hidden_SH.new_full((count,), -torch.inf), hidden_SH.new_zeros(count, dtype=torch.int64)
    columns = max(FEWEST_COLUMNS, most // max(1, count))
    for first in range(0, vocabulary, columns):
        logits_Sv = F.linear(hidden_SH, weight_VH[first : first + columns])
        place_S = _argmax(logits_Sv)
        value_S = logits_Sv.gather(1, place_S.unsqueeze(1)).squeeze(1)
        better_S = value_S > best_S
        best_S = torch.where(better_S, value_S, best_S)
        token_S = torch.where(better_S, place_S + first, token_S)
    return token_S


def _argmax(logits_SV: Tensor) -> Tensor:
    """The first of the largest in each row: on a CPU numpy finds it in a quarter of torch's time."""
    if logits_SV.device.type == "cpu" and logits_SV.dtype == torch.float32:
        return torch.from_numpy(logits_SV.numpy().argmax(axis=-1))
    return logits_SV.argmax(dim=-1)


def _chunks(rows: int, vocabulary: int) -> Iterator[slice]:
    most = max(1, CHUNK_LOGITS // vocabulary)
    return (slice(first, first + most) for first in range(0, rows, most))


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and both gradients in one pass over chunks of rows."""

    @staticmethod
    def forward(ctx, hidden_SH, weight_VH, ids_S, wanted):  # type: ignore[no-untyped-def]
        dtype = torch.promote_types(hidden_SH.dtype, torch.float32)
        loss = hidden_SH.new_zeros((), dtype=dtype)
        hidden_gradient = torch.empty_like(hidden_SH, dtype=dtype) if wanted[0] else None
        weight_gradient = torch.zeros_like(weight_VH, dtype=dtype) if wanted[1] else None
        for rows in _chunks(len(hidden_SH), len(weight_VH)):
            ids_s1 = ids_S[rows].unsqueeze(1)
            log_p_sV = F.linear(hidden_SH[rows], weight_VH).to(dtype).log_softmax(dim=-1)
            loss -= log_p_sV.gather(1, ids_s1).sum()
            if any(wanted):
                # The derivative of the summed loss by the logits: the probabilities, less 1 at the token.
                excess_sV = log_p_sV.exp_().scatter_add_(1, ids_s1, log_p_sV.new_full(ids_s1.shape, -1.0))
                excess_sV = excess_sV.to(hidden_SH.dtype)
                if hidden_gradient is not None:
                    hidden_gradient[rows] = excess_sV @ weight_VH
                if weight_gradient is not None:
                    _add_product(weight_gradient, excess_sV.T, hidden_SH[rows])
        ctx.count, ctx.dtypes = len(ids_S), (hidden_SH.dtype, weight_VH.dtype)
        # Not by save_for_backward: the backward pass scales them in place, as a copy of the weight's is large.
        ctx.gradients = (hidden_gradient, weight_gradient)
        return loss / len(ids_S)

    @staticmethod
    def backward(ctx, loss_gradient):  # type: ignore[no-untyped-def]
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this cross-entropy have been used up by an earlier backward pass")
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [
            None if gradient is None else gradient.mul_(loss_gradient / ctx.count).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return *scaled, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, where total may be of higher precision."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)
