"""Cross-entropy of the next token when the vocabulary is cut over the tensor ranks."""

import torch
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from torch import Tensor


def next_token_loss(logits_TBv: Tensor, ids_TB: Tensor, rows_beyond: int) -> Tensor:
    """Cross-entropy in nats of each token, fp32, shape (T, B).

    Args:
        logits_TBv: this rank's part of the vocabulary.
        ids_TB: the tokens that were to be predicted.
        rows_beyond: rows at the end of this rank's part that are padding, and no tokens.
    """
    logits_TBv = logits_TBv.float()
    if rows_beyond:
        real = torch.arange(logits_TBv.shape[-1], device=logits_TBv.device) < logits_TBv.shape[-1] - rows_beyond
        logits_TBv = logits_TBv.masked_fill(~real, torch.finfo(torch.float32).min)
    loss_TB: Tensor = vocab_parallel_cross_entropy(logits_TBv.contiguous(), ids_TB)
    return loss_TB
