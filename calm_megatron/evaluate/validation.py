"""Scores of a model on a split of the data: what validation during training and `tools/evaluate.py` both call.

Sums and counts are added up over ranks before any mean is taken, and all noise is keyed by sequence, so that the scores
do not depend on the layout. Under ZeRO-3 and with a pipeline all ranks must call these functions together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from calm_megatron.config.schema import EvaluationConfig
from calm_megatron.data.batch import Batch, evaluation_batches
from calm_megatron.data.sequences import Sequences
from calm_megatron.evaluate.brier import ORDERS, BrierAccumulator, BrierScore, brier_terms
from calm_megatron.evaluate.lent_head import lent_head
from calm_megatron.evaluate.rollout import choose_places, roll_out, steps_of
from calm_megatron.losses.reconstruction import reconstruction_loss
from calm_megatron.model.autoencoder import Autoencoder
from calm_megatron.model.calm import Calm
from calm_megatron.model.noise import KeyedNoise
from calm_megatron.parallel.grid import Grid
from calm_megatron.parallel.random_streams import RandomStreams

COLLAPSED_VARIANCE = 0.01
"""A latent dimension whose posterior mean varies less over the data carries nothing (Burda et al. 2016, section 5)."""


@dataclass(frozen=True)
class EvaluationPlan:
    """On what a model is evaluated."""

    dataset: Sequences
    micro_batch_size: int
    sequences: int | None
    """Take only so many sequences from the beginning; none takes all."""
    grid: Grid
    streams: RandomStreams

    def batches(self) -> Iterator[Batch]:
        """This rank's share."""
        ranks = self.grid.data_parallel_size
        return evaluation_batches(self.dataset, self.micro_batch_size, self.grid.data_rank, ranks, self.sequences)

    def total(self, values: Tensor) -> Tensor:
        """Sum over the ranks, in place; of a pipeline one stage has something to add."""
        dist.all_reduce(values, group=self.grid.data_group)
        return self.grid.stages.total(values)


@dataclass(frozen=True)
class AutoencoderScores:
    """How well the autoencoder gives its tokens back."""

    token_accuracy_mean: float
    """From the posterior mean."""
    token_accuracy_sample: float
    """From a posterior sample."""
    cross_entropy: float
    """From a posterior sample, nats per token."""
    kl: float
    """Clipped as in the loss, nats per patch."""
    collapsed_dimensions: int
    robustness: tuple[tuple[float, float], ...]
    """Pairs (sigma, token accuracy) from the posterior mean plus Gaussian noise of that standard deviation."""
    tokens: int


@dataclass(frozen=True)
class CalmScores:
    """How well CALM predicts the next vector, and the tokens in it."""

    loss: float
    parts: dict[str, float]
    """What the loss is made of, by the names that the head gives it."""
    patches: int
    brier: BrierScore | None
    """None for K < 4, where one vector holds too few tokens, unless they are rolled out."""


@torch.no_grad()
def validate_autoencoder(model: Autoencoder, plan: EvaluationPlan, sigmas: Sequence[float]) -> AutoencoderScores:
    """Accuracy from mean, sample and noisy mean; padding tokens count like all others."""
    config = model.config
    Z, K = config.latent_size, config.patch_size
    device = plan.grid.device
    counts = torch.zeros(2 + len(sigmas) + 3, dtype=torch.float64, device=device)
    moments = torch.zeros(2, Z, dtype=torch.float64, device=device)
    for batch in plan.batches():
        ids_RK = batch.ids_BT.to(device).view(-1, K)
        sequences, patches = batch.sequence_ids_B.tolist(), batch.ids_BT.shape[1] // K
        noise_RZ = plan.streams.normal("evaluation latent", 0, sequences, (patches, Z)).flatten(0, 1)
        mean_RZ, log_std_RZ = (tensor.float() for tensor in model.encoder(ids_RK))
        sample_RZ = mean_RZ + noise_RZ * log_std_RZ.exp()
        dtype = model.decoder.latent_to_hidden.weight.dtype
        cross_entropy = model.cross_entropy(sample_RZ.to(dtype), ids_RK)
        terms = reconstruction_loss(cross_entropy, K, mean_RZ, log_std_RZ, config.kl_weight, config.kl_clamp)
        latents = [sample_RZ, *(mean_RZ + sigma * noise_RZ for sigma in (0.0, *sigmas))]
        hits = [(model.tokens(latent_RZ.to(dtype)) == ids_RK).sum().double() for latent_RZ in latents]
        patch_count = len(ids_RK)
        if not patch_count:
            continue  # means over nothing are NaN
        sums = [terms.cross_entropy * ids_RK.numel(), terms.kl * patch_count]
        counts += torch.stack([*hits, *sums, torch.tensor(float(patch_count), device=device)]).double()
        moments += torch.stack([mean_RZ.double().sum(dim=0), mean_RZ.double().square().sum(dim=0)])
    plan.total(counts)
    plan.total(moments)
    *hit_counts, cross_entropy, kl, patches_seen = counts.tolist()
    tokens = patches_seen * K
    sample, mean, *noisy = (hit / tokens for hit in hit_counts)
    first, second = moments / patches_seen
    collapsed = int((second - first.square() < COLLAPSED_VARIANCE).sum())
    return AutoencoderScores(
        token_accuracy_mean=mean,
        token_accuracy_sample=sample,
        cross_entropy=cross_entropy / tokens,
        kl=kl / patches_seen,
        collapsed_dimensions=collapsed,
        robustness=tuple(zip(sigmas, noisy, strict=True)),
        tokens=int(tokens),
    )


@torch.no_grad()
def validate_calm(
    model: Calm, plan: EvaluationPlan, reset_attention_mask: bool, evaluation: EvaluationConfig
) -> CalmScores:
    """The head's loss, and BrierLM from a pair of samples of each patch, or the mean of several disjoint pairs.

    Samples that the loss is made of serve for the pairs; for another loss they are drawn. For K < 4 BrierLM is rolled
    out from as many places as the config says, with draws of its own.
    """
    config, draws = model.config, 2 * evaluation.brier_pairs
    K, device, stages = config.patch_size, plan.grid.device, plan.grid.stages
    known = plan.dataset.sequences_per_epoch
    accumulator = BrierAccumulator(known, device=device)
    names = type(model.head).part_names
    sums = torch.zeros(2 + len(names), dtype=torch.float64, device=device)
    sampler = lent_head(model, stages) if K >= ORDERS else None
    for batch in plan.batches():
        ids_BT = batch.ids_BT.to(device)
        sequences, patches = batch.sequence_ids_B.tolist(), ids_BT.shape[1] // K - 1
        noise = KeyedNoise(plan.streams, "evaluation", 0, sequences, patches)
        documents_BP = batch.documents_BP.to(device) if reset_attention_mask else None
        scored = model.score(ids_BT, noise, documents_BP, received=stages.receive())
        samples_NRZ = None
        if scored.sent is not None:
            stages.send(scored.sent)
        if scored.terms is not None:
            terms = scored.terms
            rows = torch.tensor(float(len(terms.loss_R)), device=device)
            parts = [terms.parts[name].sum() for name in names]
            sums += torch.stack([terms.loss_R.sum(), *parts, rows]).double()
            samples_NRZ = terms.samples_NRZ
        if sampler is not None and scored.hidden_RH is not None:
            samples_NRZ = model.draw(sampler, scored.hidden_RH, noise, draws, evaluation.sampling_steps)
        if K >= ORDERS and samples_NRZ is not None and samples_NRZ.shape[1]:
            drawn_NRK = model.autoencoder.tokens(samples_NRZ[:draws])
            target_RK = ids_BT[:, K:].unflatten(1, (-1, K)).flatten(0, 1)
            rows_R = batch.sequence_ids_B.to(device).repeat_interleave(patches)
            pairs = zip(drawn_NRK[::2], drawn_NRK[1::2], strict=True)
            terms_RO = torch.stack([brier_terms(first, second, target_RK) for first, second in pairs]).mean(dim=0)
            accumulator.add(terms_RO, rows_R)
        if K < ORDERS and evaluation.rollout_positions:
            terms_BWO = _rolled_terms(model, plan, batch, documents_BP, evaluation)
            rows_R = batch.sequence_ids_B.to(device).repeat_interleave(terms_BWO.shape[1])
            accumulator.add(terms_BWO.flatten(0, 1), rows_R)
    plan.total(sums)
    plan.total(accumulator.state_SC)
    loss, *parts_sums, patches = sums.tolist()
    brier = accumulator.score(evaluation.confidence) if K >= ORDERS or evaluation.rollout_positions else None
    means = {name: part / patches for name, part in zip(names, parts_sums, strict=True)}
    return CalmScores(loss / patches, means, int(patches), brier)


def _rolled_terms(
    model: Calm, plan: EvaluationPlan, batch: Batch, documents_BP: Tensor | None, evaluation: EvaluationConfig
) -> Tensor:
    """Brier terms (B, W, O) of a batch by roll-out, the mean over pairs."""
    K, ids_BT = model.config.patch_size, batch.ids_BT.to(plan.grid.device)
    sequences, patches = batch.sequence_ids_B.tolist(), ids_BT.shape[1] // K
    places_BW = choose_places(plan.streams, sequences, patches, K, evaluation.rollout_positions)

    def terms(pair: int) -> Tensor:
        def draw(hidden_RH: Tensor, step: int) -> Tensor:
            rows = places_BW.shape[1] * (steps_of(K) if step == 0 else 1)
            noise = KeyedNoise(plan.streams, f"evaluation roll-out {pair}", step, sequences, rows)
            return model.autoencoder.tokens(model.head.sample(hidden_RH, noise, 2, evaluation.sampling_steps))

        eod_id = plan.dataset.meaning.eod_id
        return roll_out(model, model.config, ids_BT, documents_BP, places_BW, draw, eod_id, K).terms()

    return torch.stack([terms(pair) for pair in range(evaluation.brier_pairs)]).mean(dim=0)
