"""What weights, gradients and optimizer state take on a rank at their peak in a step, from the config alone.

For W weights on the rank, S = W / data ranks its own share, w bytes of a weight, buckets of B gradients, b = min(B, W):

    ZeRO  weights  master  moments  gradients and their copies while they are exchanged       ... while AdamW steps
    0     w W      -       8 W      4 W, and a flat copy 4 W                                  4 W
    1     w W      4 S     8 S      fp32: 4 W, and 4 (S - B) if B < W                         8 S
                                    bf16: 4 W, a flat copy 4 W and what is sent of it 2 W     4 W
                                    fp16: 4 (W - b), those reduced 4 S, copies 4 b + 2 b      4 S
    2     w W      4 S     8 S      fp32: 4 S accumulated; the bucket's copy 4 b, or those    8 S
                                    reduced 4 S and the next bucket's copy
                                    bf16, fp16: 4 S accumulated, the bucket's copy 2 b        4 S
    3     w S      4 S     8 S      4 S, and w W of gathered weights or of gradients          8 S

The textbook has 16 W at ZeRO 0, and shares without copies. DeepSpeed 0.19.8 holds more: a flat copy of what it
exchanges; fp32 master weights beside fp32 weights; a copy of fp32 gradients for AdamW. Under ZeRO-3 weights that are
gathered stay from the forward to the backward pass, unless `REUSED_WITHIN` numbers are used in between.

The buckets come on top, in full however small the model is, in the type of what they hold: one (ZeRO 0, and ZeRO 1 in
bf16, have none), in a pipeline two.
"""

from dataclasses import dataclass

from calm_megatron.config.deepspeed_json import deepspeed_json
from calm_megatron.config.schema import AutoencoderConfig, RunConfig
from calm_megatron.plan.held import held_layers
from calm_megatron.plan.traffic import REUSED_WITHIN

_EXCHANGED_AT_ONCE = 500_000_000
"""Elements that DeepSpeed's engine reduces at a time without buckets (`MEMORY_OPT_ALLREDUCE_SIZE`)."""
_BUCKET = 500_000_000
"""DeepSpeed's own `reduce_bucket_size`."""


@dataclass(frozen=True)
class StateMemory:
    """Bytes on a rank at the peak."""

    weights: int
    master_weights: int
    """In fp32, beside the weights that compute."""
    moments: int
    """AdamW's two."""
    gradients: int
    """With the copies that are on their way, and under ZeRO-3 the gathered weights."""
    bucket: int
    """Where gradients wait to be reduced together."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.master_weights + self.moments + self.gradients + self.bucket


def state_memory(
    config: RunConfig, data_ranks: int = 1, stage: int = 0, autoencoder: AutoencoderConfig | None = None
) -> StateMemory:
    """What a rank of a pipeline stage holds of CALM; arguments and errors as in `step_traffic`."""
    zero = config.parallel.zero_stage
    weights = sum(layer.weights for layer in held_layers(config, stage, autoencoder))
    own = -(-weights // data_ranks)  # the last rank's share is filled up
    width = 4 if config.train.precision == "fp32" else 2
    bucket = deepspeed_json(config, 1)["zero_optimization"].get("reduce_bucket_size", _BUCKET)
    while_reduced, while_stepping, bucket_bytes = _gradients(config, data_ranks, weights, bucket)
    # AdamW steps when the buckets are gone; stage 3 keeps its own.
    kept = bucket_bytes if zero == 3 else 0
    at_peak = max((while_reduced, bucket_bytes), (while_stepping, kept), key=sum)
    return StateMemory(
        weights=width * (own if zero == 3 else weights),
        master_weights=4 * own if zero else 0,
        moments=8 * (own if zero else weights),
        gradients=at_peak[0],
        bucket=at_peak[1],
    )


def _gradients(config: RunConfig, data_ranks: int, weights: int, bucket: int) -> tuple[int, int, int]:
    """Bytes while gradients are reduced and while AdamW steps, and those of the buckets."""
    own = -(-weights // data_ranks)
    zero, precision = config.parallel.zero_stage, config.train.precision
    at_once, at_most = min(weights, bucket), min(weights, _EXCHANGED_AT_ONCE)
    pipeline = config.parallel.pipeline_model_parallel_size > 1
    if zero == 0:
        return 4 * (weights + at_most), 4 * weights, 0
    if zero == 1 and precision == "bf16":
        return 4 * weights + 6 * at_most, 4 * weights, 0
    if zero == 1 and precision == "fp16":
        return max(4 * weights, 4 * (weights - at_once + own) + 6 * at_once), 4 * own, (6 if pipeline else 4) * bucket
    if zero == 1:
        later = 4 * (own - bucket) if bucket < weights else 0
        return 4 * weights + max(0, later), 8 * own, (8 if pipeline else 4) * bucket
    if zero == 2 and precision == "fp32":
        train = config.train
        accumulated = own if train.global_batch_size > train.micro_batch_size * data_ranks else 0
        next_bucket = max(0, min(bucket, weights - bucket))
        return 4 * (accumulated + max(at_once, own + next_bucket)), 8 * own, 4 * bucket
    if zero == 2:
        return 4 * own + 2 * at_once, 4 * own, 2 * bucket
    width = 4 if precision == "fp32" else 2
    gathered = width * min(weights, REUSED_WITHIN // 2)
    return 4 * own + gathered, 8 * own, width * bucket
