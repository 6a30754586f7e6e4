"""BrierLM's four tokens from models of which one step gives fewer: roll-outs from many places of a text at once.

A run of four tokens takes s = ceil(4 / K) steps. With y the text from some place on, and P the model's law of what
comes there, Brier-n is `2 P(y_1..n) - sum_x P(x_1..n)^2`, and its two parts are estimated from different draws:

- P(y): at each of the s steps two draws are made *given the text*. The product of the hits of the first draws has the
  expectation P(y_1) P(y_2 | y_1) ... = P(y), and so has that of the second ones.
- the collisions: two whole continuations x and x' would be needed. But x' counts only as long as it agrees with x, so
  its next step may be drawn behind x. So a step draws twice behind the first draw of the step before (arXiv
  2510.27688, and the official `eval_brier`).

For the last part the model reads what it has drawn. All W places of a text go through it side by side as branches of
one cache (`BranchingCache`): a step costs as much as W more patches of the text, whatever lies before them, and there
is no loop over places. The text itself is read once more for its keys and values.

Which document a drawn patch belongs to follows the rule by which texts are packed: an end of document ends it.

Not for pipelines: each step needs the tokens of the one before at the first stage, so the stages would wait for each
other s times a batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from calm_megatron.config.schema import BackboneConfig
from calm_megatron.evaluate.brier import ORDERS, equal_so_far
from calm_megatron.model.attention import BranchingCache, KVCache
from calm_megatron.parallel.random_streams import RandomStreams
from calm_megatron.parallel.tensor_ranks import TensorRanks

DrawPairs = Callable[[Tensor, int], Tensor]
"""(hidden_RH, step) -> two independent draws (2, R, K) behind each hidden state. Step 0 is asked for B * W * s rows, in
the order (sequence, place, step of the text); later ones for B * W."""


class Reader(Protocol):
    """What a roll-out needs of a model: it reads whole patches of K tokens."""

    ranks: TensorRanks

    def hidden_states(self, ids_BT: Tensor, documents_BP: Tensor | None, cache: KVCache | None, /) -> Tensor:
        """Hidden states (B, P, H), behind what is in the cache."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """All weights."""
        ...


@dataclass(frozen=True)
class RollOut:
    """What was drawn at W places, in tokens; O of them are scored."""

    target_BWO: Tensor
    """What the text says."""
    forced_2BWO: Tensor
    """Two draws of each step given the text."""
    rolled_2BWO: Tensor
    """Two draws of each step given the first draws of the steps before."""

    def terms(self) -> Tensor:
        """The Brier terms (B, W, O) in float32, whole numbers from -1 to 2."""
        first_BWO, second_BWO = self.forced_2BWO
        hits_BWO = equal_so_far(first_BWO, self.target_BWO) + equal_so_far(second_BWO, self.target_BWO)
        return hits_BWO - equal_so_far(*self.rolled_2BWO)


def steps_of(patch_size: int) -> int:
    """Patches that hold the scored tokens."""
    return -(-ORDERS // patch_size)


def choose_places(
    streams: RandomStreams, sequences: Sequence[int], patches: int, patch_size: int, limit: int
) -> Tensor:
    """Places (B, W) from which to roll out: numbers of the last patch of the text that is read.

    Without a limit all that are followed by whole runs, but the last, as in the official code. With one, as many
    places, one in each of equal parts of the sequence, keyed by the sequence: every place is as likely as any other.

    Args:
        streams: of the evaluation.
        sequences: ids of the B sequences.
        patches: P of each.
        patch_size: K.
        limit: places at most.
    """
    available = patches - 1 - steps_of(patch_size)
    if available <= limit:
        return torch.arange(available, device=streams.device).expand(len(sequences), -1)
    shares_BW = streams.uniform("evaluation places", 0, sequences, (limit,)).double()
    parts_W = torch.arange(limit, device=streams.device)
    # Rounding may bring the sum up to the next whole number.
    return ((parts_W + shares_BW) * available / limit).long().clamp(max=available - 1)


def roll_out(
    model: Reader,
    config: BackboneConfig,
    ids_BT: Tensor,
    documents_BP: Tensor | None,
    places_BW: Tensor,
    draw: DrawPairs,
    eod_id: int,
    patch_size: int,
) -> RollOut:
    """Draw at all places of all texts; tensor ranks call together, and each gets everything.

    Args:
        model: the whole of it, in evaluation mode.
        config: of the model.
        ids_BT: the texts, whole patches.
        documents_BP: document of each patch, to keep attention within documents; none lets it reach across.
        places_BW: see `choose_places`.
        draw: makes pairs of patches from hidden states.
        eod_id: token that ends a document.
        patch_size: K.
    """
    B, W = places_BW.shape
    steps, ranks = steps_of(patch_size), model.ranks
    patches_BPK = ids_BT.unflatten(1, (-1, patch_size))
    # Branches are a sequence to the model, which sequence parallelism cuts into equal parts.
    fill = -W % ranks.size if ranks.sequence_parallel else 0
    start_BW = torch.cat([places_BW, places_BW[:, :1].expand(-1, fill)], dim=1)
    text_BP = torch.zeros_like(patches_BPK[:, :, 0]) if documents_BP is None else documents_BP.to(ids_BT)
    like = next(model.parameters())
    cache = BranchingCache(config, text_BP, start_BW.shape[1], steps - 1, like, ranks.size)
    hidden_BPH = model.hidden_states(ids_BT, documents_BP, cache)

    along_BWs = places_BW.unsqueeze(-1) + torch.arange(steps, device=places_BW.device)
    forced_2BWsK = draw(_rows(hidden_BPH, along_BWs).flatten(0, 2), 0).unflatten(1, (B, W, steps))
    rolled = [forced_2BWsK[:, :, :, 0]]
    documents_BW = text_BP.gather(1, start_BW + 1)
    for step in range(1, steps):
        drawn_BWK = torch.cat([rolled[-1][0], rolled[-1][0][:, :1].expand(-1, fill, -1)], dim=1)
        cache.grow(start_BW, documents_BW)
        hidden_BWH = model.hidden_states(drawn_BWK.flatten(1), None, cache)[:, :W]
        rolled.append(draw(hidden_BWH.flatten(0, 1), step).unflatten(1, (B, W)))
        if documents_BP is not None:
            documents_BW = torch.where((drawn_BWK == eod_id).any(dim=-1), -step, documents_BW)
    target_BWsK = _rows(patches_BPK, along_BWs + 1)
    return RollOut(
        target_BWO=target_BWsK.flatten(2)[:, :, :ORDERS],
        forced_2BWO=forced_2BWsK.flatten(3)[..., :ORDERS],
        rolled_2BWO=torch.cat(rolled, dim=-1)[..., :ORDERS],
    )


def _rows(of_BPx: Tensor, index_BWs: Tensor) -> Tensor:
    """Those rows (B, W, s, x) of P."""
    batch_B11 = torch.arange(len(of_BPx), device=of_BPx.device).view(-1, 1, 1)
    return of_BPx[batch_B11, index_BWs]
