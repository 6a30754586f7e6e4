"""Refuse settings that contradict each other, when the config is read and before any process group exists.

Each check returns the reason and the nearest values that work; all reasons are shown at once.
"""

import math
from collections.abc import Iterator
from glob import has_magic

from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import (
    AutoencoderConfig,
    BackboneConfig,
    CalmConfig,
    DiffusionHeadConfig,
    EnergyHeadConfig,
    HeadConfig,
    RunConfig,
)

_SCORED_TOKENS = 4
"""Longest run of tokens that BrierLM scores."""


def check(config: RunConfig) -> None:
    """Raise a `UserError` that lists every contradiction within the config."""
    problems = [
        *_model(config),
        *_data(config),
        *_rollout(config),
        *_batches(config),
        *_schedule(config),
        *_precision(config),
        *_health(config),
        *_tensor_parallel(config),
        *_pipeline_parallel(config),
    ]
    if problems:
        raise UserError("\n".join(problems), "the config of this run")


def nearest_multiples(value: int, factor: int) -> str:
    """The multiples of `factor` next to `value`, as text for a message."""
    below = value // factor * factor
    return " or ".join(str(number) for number in (below, below + factor) if number > 0)


def _nearest_divisors(value: int, number: int) -> str:
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    return " or ".join(str(d) for d in sorted(divisors, key=lambda d: abs(d - value))[:2])


def _model(config: RunConfig) -> Iterator[str]:
    model = config.model
    if isinstance(model, AutoencoderConfig):
        for name in ("num_encoder_layers", "num_decoder_layers"):
            layers = getattr(model, name)
            if layers % 2:
                yield (
                    f"model.{name} = {layers}: half of the layers work on tokens and half on patches, so an odd one "
                    f"would stay unused; nearest that work: {nearest_multiples(layers, 2)}"
                )
    if isinstance(model, CalmConfig):
        yield from _head(config, model.head)
    elif config.evaluation.sampling_steps is not None:
        yield f"evaluation.sampling_steps has no effect with a model of type '{model.type}'; leave it out"
    if isinstance(model, BackboneConfig):
        heads = model.num_attention_heads
        if model.hidden_size % heads:
            yield (
                f"model.hidden_size = {model.hidden_size} is no multiple of model.num_attention_heads = {heads}; "
                f"nearest head counts: {_nearest_divisors(heads, model.hidden_size)}"
            )
        elif model.hidden_size // heads % 2:
            yield f"rotary embedding needs an even head size; {model.hidden_size} / {heads} is odd"
        groups = model.num_query_groups
        if groups is not None and heads % groups:
            yield (
                f"model.num_query_groups = {groups} does not divide model.num_attention_heads = {heads}; "
                f"nearest that work: {_nearest_divisors(groups, heads)}"
            )


def _head(config: RunConfig, head: HeadConfig) -> Iterator[str]:
    pairs, steps = config.evaluation.brier_pairs, config.evaluation.sampling_steps
    if isinstance(head, EnergyHeadConfig):
        if 2 * pairs > (samples := head.num_samples):
            yield f"evaluation.brier_pairs = {pairs} needs {2 * pairs} samples, model.head.num_samples = {samples}"
        if steps is not None:
            yield "evaluation.sampling_steps has no effect with an energy head, which samples in one step; leave it out"
    elif steps is not None:
        least = 2 if isinstance(head, DiffusionHeadConfig) else 1
        if not least <= steps <= 1000:
            yield f"evaluation.sampling_steps = {steps}: a {head.type} head samples in {least} to 1000 steps"


def _data(config: RunConfig) -> Iterator[str]:
    data, patch_size = config.data, config.model.patch_size
    if data.seq_length % patch_size:
        yield (
            f"data.seq_length = {data.seq_length} is no multiple of model.patch_size = {patch_size}; "
            f"nearest that work: {nearest_multiples(data.seq_length, patch_size)}"
        )
    elif isinstance(config.model, BackboneConfig) and data.seq_length < 2 * patch_size:
        yield f"data.seq_length = {data.seq_length}: one patch is predicted from another, so give it at least two"
    if data.data_path and any([data.train_data_path, data.train_shards, data.valid_data_path, data.test_data_path]):
        yield "data.data_path (one set, cut by data.split) and data.train_data_path etc. exclude each other"
    if data.train_data_path and data.train_shards:
        yield "data.train_data_path and data.train_shards exclude each other"
    if not (data.data_path or data.train_data_path or data.train_shards):
        yield "set data.data_path (one set, cut by data.split) or data.train_data_path with data.valid_data_path"
    for name in ("train_data_path", "train_shards"):
        if getattr(data, name) and not data.valid_data_path:
            yield f"data.{name} needs data.valid_data_path beside it"
    if data.data_path:
        yield from _split(data.split)
    if data.blend_weights and data.blend_epochs:
        yield "data.blend_weights and data.blend_epochs both say how much of each data set is taken; give one"
    training = data.data_path or data.train_data_path
    single = training is None or (isinstance(training, str) and not has_magic(training))
    if (data.blend_weights or data.blend_epochs) and single:
        yield "data.blend_weights and data.blend_epochs have no effect on a single data set; leave them out"


def _rollout(config: RunConfig) -> Iterator[str]:
    places, patch_size = config.evaluation.rollout_positions, config.model.patch_size
    name = f"evaluation.rollout_positions = {places}"
    if not places:
        return
    if isinstance(config.model, AutoencoderConfig):
        yield f"{name} has no effect on an autoencoder; leave it out"
    elif patch_size >= _SCORED_TOKENS:
        yield f"{name} has no effect with model.patch_size = {patch_size}: a patch holds all four tokens; set it to 0"
    else:
        patches = 2 + -(-_SCORED_TOKENS // patch_size)
        if config.data.seq_length < patches * patch_size:
            yield f"{name} needs sequences of {patches} patches or more: data.seq_length = {patches * patch_size}"
        if config.parallel.pipeline_model_parallel_size > 1:
            yield (
                f"{name} with parallel.pipeline_model_parallel_size = {config.parallel.pipeline_model_parallel_size}: "
                "each of its steps needs the tokens of the step before at the first stage, so stages would wait for "
                "each other; set it to 0, and score checkpoints by tools/evaluate.py --rollout-positions"
            )


def _split(split: str) -> Iterator[str]:
    try:
        shares = [float(part) for part in split.split(",")]
    except ValueError:
        shares = []
    if len(shares) != 3 or not all(0 <= share < math.inf for share in shares) or not any(shares):
        yield f"data.split = '{split}' must be three shares, training, validation and test, such as 98,1,1"
    elif shares[0] <= 0 or shares[1] <= 0:
        yield f"data.split = '{split}' leaves nothing for training or validation"


def _batches(config: RunConfig) -> Iterator[str]:
    train = config.train
    if train.global_batch_size % train.micro_batch_size:
        yield (
            f"train.global_batch_size = {train.global_batch_size} is no multiple of train.micro_batch_size = "
            f"{train.micro_batch_size}; nearest that work: "
            f"{nearest_multiples(train.global_batch_size, train.micro_batch_size)}"
        )
    if train.rampup_batch_size:
        start, increment, _ = train.rampup_batch_size
        if start > train.global_batch_size:
            yield f"train.rampup_batch_size starts at {start}, above global_batch_size = {train.global_batch_size}"
        elif (train.global_batch_size - start) % increment:
            yield (
                f"train.rampup_batch_size = {list(train.rampup_batch_size)} does not reach global_batch_size = "
                f"{train.global_batch_size} in steps of {increment}"
            )


def _schedule(config: RunConfig) -> Iterator[str]:
    schedule, iters = config.optimizer, config.train.train_iters
    decay = schedule.lr_decay_iters or iters
    if schedule.min_lr > schedule.lr:
        yield f"optimizer.min_lr = {schedule.min_lr} is above optimizer.lr = {schedule.lr}"
    if schedule.lr_decay_style == "constant":
        if schedule.lr_decay_iters is not None:
            yield "optimizer.lr_decay_iters has no effect with lr_decay_style = constant; leave it out"
        if schedule.min_lr:
            yield "optimizer.min_lr has no effect with lr_decay_style = constant; leave it out"
    elif schedule.lr_warmup_iters >= decay:
        yield f"optimizer.lr_warmup_iters = {schedule.lr_warmup_iters} must be below the {decay} steps of the schedule"
    if schedule.lr_decay_style == "WSD":
        if schedule.lr_wsd_decay_iters is None:
            yield "optimizer.lr_decay_style = WSD needs optimizer.lr_wsd_decay_iters, the steps of its last phase"
        elif schedule.lr_wsd_decay_iters + schedule.lr_warmup_iters > decay:
            yield (
                f"warm-up ({schedule.lr_warmup_iters}) and decay ({schedule.lr_wsd_decay_iters}) are longer than the "
                f"{decay} steps of the schedule"
            )
        if schedule.lr_wsd_decay_style == "exponential" and not schedule.min_lr:
            yield "optimizer.lr_wsd_decay_style = exponential needs optimizer.min_lr above 0"
    else:
        for name, default in (("lr_wsd_decay_iters", None), ("lr_wsd_decay_style", "linear")):
            if getattr(schedule, name) != default:
                yield f"optimizer.{name} has no effect with lr_decay_style = {schedule.lr_decay_style}; leave it out"


def _health(config: RunConfig) -> Iterator[str]:
    if config.train.skip_loss_spikes and not config.train.loss_spike_threshold:
        yield "train.skip_loss_spikes needs train.loss_spike_threshold above 0, such as 10"


def _precision(config: RunConfig) -> Iterator[str]:
    precision = config.train.precision
    if precision != "fp32" and config.parallel.zero_stage == 0:
        yield (
            f"train.precision = {precision} with parallel.zero_stage = 0 would sum gradients in {precision} (DeepSpeed "
            "has no fp32 accumulation there); use parallel.zero_stage=1, which costs no memory even on one rank"
        )


def _pipeline_parallel(config: RunConfig) -> Iterator[str]:
    parallel, model = config.parallel, config.model
    stages = parallel.pipeline_model_parallel_size
    name = f"parallel.pipeline_model_parallel_size = {stages}"
    if stages == 1:
        return
    if isinstance(model, AutoencoderConfig):
        yield f"{name}: the autoencoder is trained by data-parallel ranks only; set it to 1"
        return
    if parallel.zero_stage > 1:
        yield (
            f"{name} with parallel.zero_stage = {parallel.zero_stage}: each micro-batch would reduce (2) or gather (3) "
            "what the pipeline keeps until the step's end, so DeepSpeed refuses it; use parallel.zero_stage=1"
        )
    layers = model.num_layers + (model.head.num_layers + 4 if isinstance(model, CalmConfig) else 3)
    if stages > layers:
        yield f"{name}, but the model has {layers} layers, embedding and head included; set it to {layers} or fewer"


def _tensor_parallel(config: RunConfig) -> Iterator[str]:
    parallel, model = config.parallel, config.model
    size = parallel.tensor_model_parallel_size
    name = f"parallel.tensor_model_parallel_size = {size}"
    if parallel.sequence_parallel and size == 1:
        yield "parallel.sequence_parallel needs tensor ranks: set parallel.tensor_model_parallel_size above 1"
    if size == 1:
        return
    if isinstance(model, AutoencoderConfig):
        yield f"{name}: the autoencoder is trained by data-parallel ranks only; set it to 1"
        return
    shared = {
        "model.num_attention_heads": model.num_attention_heads,
        "model.num_query_groups": model.num_query_groups or model.num_attention_heads,
        "model.ffn_hidden_size": model.ffn_hidden_size,
        "model.hidden_size": model.hidden_size,
    }
    if isinstance(model, CalmConfig):
        shared["model.head.num_samples"] = model.head.num_samples
    if parallel.sequence_parallel:
        shared["data.seq_length / model.patch_size"] = config.data.seq_length // model.patch_size
    common = math.gcd(*shared.values())
    for setting, value in shared.items():
        if value % size:
            yield f"{name} does not divide {setting} = {value}; nearest that work: {_nearest_divisors(size, common)}"
