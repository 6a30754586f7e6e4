"""Scores of the token-level baseline on a split: cross-entropy, and BrierLM as its samples and its probabilities say.

The baseline has probabilities, and yet is scored from samples as CALM is, so that the two can be compared. What the
probabilities add is a check with less noise. Brier-n is

    2 P(y_1..n) - sum_x P(x_1..n)^2

where P(y_1..n) is known. The sum over all V^n runs is not, but for n = 1, and equals the mean over x ~ P of
P(x_1..n-1) sum_v P(v | x_1..n-1)^2: the roll-out's first draw gives x, and everything else is known.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from calm_megatron.config.schema import EvaluationConfig
from calm_megatron.data.batch import Batch
from calm_megatron.evaluate.brier import ORDERS, BrierAccumulator, BrierScore
from calm_megatron.evaluate.rollout import choose_places, roll_out
from calm_megatron.evaluate.validation import EvaluationPlan
from calm_megatron.model.ar_baseline import ArBaseline
from calm_megatron.model.softmax import tokens_of

PROBABILITIES_AT_ONCE = 16_000_000
"""In memory at a time, in float64 (128 MB, some four times)."""


@dataclass(frozen=True)
class ArScores:
    """How well the baseline predicts the next token, and the next four."""

    loss: float
    """Cross-entropy in nats per token."""
    tokens: int
    brier: BrierScore | None
    """From samples; none where no places are rolled out."""
    brier_known: BrierScore | None
    """From probabilities, at the same places."""


@dataclass
class TokenPairs:
    """Draws pairs of tokens for a roll-out, and keeps what the probabilities say of them."""

    model: ArBaseline
    plan: EvaluationPlan
    sequences: list[int]
    target_BWO: Tensor
    _gold_BWO: Tensor = field(init=False)
    _chance: list[Tensor] = field(default_factory=list)
    """Of each step: probability of the first draw, (R,)."""
    _collision: list[Tensor] = field(default_factory=list)
    """Of each step: that two draws are equal, (R,)."""

    def draw(self, hidden_RH: Tensor, step: int) -> Tensor:
        """Pairs of tokens (2, R, 1)."""
        B, W, orders = self.target_BWO.shape
        rows = W * (orders if step == 0 else 1)
        uniform_R2 = self.plan.streams.uniform("evaluation roll-out", step, self.sequences, (rows, 2)).flatten(0, 1)
        drawn, chance, collision, gold = [], [], [], []
        # As many parts on a rank with fewer sequences, or none: ranks gather sharded weights together.
        most = self.plan.micro_batch_size * rows * self.model.config.vocab_size
        parts = -(-most // PROBABILITIES_AT_ONCE)
        target_R = self.target_BWO.flatten() if step == 0 else self.target_BWO[:, :, step].flatten()
        split = (whole.tensor_split(parts) for whole in (hidden_RH, uniform_R2, target_R))
        for part_rH, uniform_r2, target_r in zip(*split, strict=True):
            logits_rV = self.model.logits(part_rH).double()
            share_rV = logits_rV.softmax(dim=-1)
            tokens_r2 = tokens_of(logits_rV, uniform_r2)
            drawn.append(tokens_r2)
            chance.append(share_rV.gather(1, tokens_r2[:, :1]).squeeze(1))
            collision.append(share_rV.square().sum(dim=-1))
            gold.append(share_rV.gather(1, target_r.unsqueeze(1)).squeeze(1))
        if step == 0:
            self._gold_BWO = torch.cat(gold).view(B, W, orders)
        first = slice(None, None, orders if step == 0 else 1)
        self._chance.append(torch.cat(chance)[first])
        self._collision.append(torch.cat(collision)[first])
        return torch.cat(drawn).T.unsqueeze(-1)

    def known_terms(self) -> Tensor:
        """The Brier terms (B, W, O) in float64 from probabilities, when all steps are drawn."""
        B, W, _ = self.target_BWO.shape
        before = torch.stack([torch.ones_like(self._chance[0]), *self._chance[:-1]], dim=-1).cumprod(dim=-1)
        collisions_BWO = (before * torch.stack(self._collision, dim=-1)).view(B, W, -1)
        return 2.0 * self._gold_BWO.cumprod(dim=-1) - collisions_BWO


@torch.no_grad()
def validate_ar(
    model: ArBaseline, plan: EvaluationPlan, reset_attention_mask: bool, evaluation: EvaluationConfig
) -> ArScores:
    """Cross-entropy over all predicted tokens, and BrierLM from as many places as the config says."""
    device, stages = plan.grid.device, plan.grid.stages
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    known = plan.dataset.sequences_per_epoch
    sampled, computed = (BrierAccumulator(known, device=device) for _ in range(2))
    for batch in plan.batches():
        ids_BT = batch.ids_BT.to(device)
        documents_BT = batch.documents_BP.to(device) if reset_attention_mask else None
        result = model.losses(ids_BT, documents_BT, stages.receive())
        if not stages.is_last:
            stages.send(result)
            continue
        sums += torch.stack([result.double().sum(), sums.new_tensor(result.numel())])
        if evaluation.rollout_positions:
            terms_BWO, known_BWO = _rolled_terms(model, plan, batch, documents_BT, evaluation)
            rows_R = batch.sequence_ids_B.to(device).repeat_interleave(terms_BWO.shape[1])
            sampled.add(terms_BWO.flatten(0, 1), rows_R)
            computed.add(known_BWO.flatten(0, 1), rows_R)
    loss, tokens = plan.total(sums).tolist()
    if not evaluation.rollout_positions:
        return ArScores(loss / tokens, int(tokens), None, None)
    plan.total(sampled.state_SC)
    plan.total(computed.state_SC)
    confidence = evaluation.confidence
    return ArScores(loss / tokens, int(tokens), sampled.score(confidence), computed.score(confidence))


def _rolled_terms(
    model: ArBaseline, plan: EvaluationPlan, batch: Batch, documents_BT: Tensor | None, evaluation: EvaluationConfig
) -> tuple[Tensor, Tensor]:
    """Brier terms (B, W, O) of a batch from samples, and from probabilities."""
    ids_BT, sequences = batch.ids_BT.to(plan.grid.device), batch.sequence_ids_B.tolist()
    places_BW = choose_places(plan.streams, sequences, ids_BT.shape[1], 1, evaluation.rollout_positions)
    runs_BWO = places_BW.unsqueeze(-1) + torch.arange(1, ORDERS + 1, device=places_BW.device)
    target_BWO = ids_BT.gather(1, runs_BWO.flatten(1)).view(runs_BWO.shape)
    pairs = TokenPairs(model, plan, sequences, target_BWO)
    eod_id = plan.dataset.meaning.eod_id
    rolled = roll_out(model, model.config, ids_BT, documents_BT, places_BW, pairs.draw, eod_id, 1)
    return rolled.terms(), pairs.known_terms()
