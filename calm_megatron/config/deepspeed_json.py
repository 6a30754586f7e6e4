"""DeepSpeed's configuration, derived from the run's in one place."""

from typing import Any

from calm_megatron.config.schema import RunConfig


def deepspeed_json(config: RunConfig, micro_batches: int) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`.

    Args:
        config: the run.
        micro_batches: micro-batches per rank and step at the start; the engine follows the batch-size ramp-up.
    """
    sharded = config.parallel.zero_stage > 0
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.train.micro_batch_size,
        "gradient_accumulation_steps": micro_batches,
        # Without ZeRO the engine clips by itself (train/engine.py), because DeepSpeed then gives no gradient norm.
        "gradient_clipping": config.optimizer.clip_grad if sharded else 0.0,
        # The buckets of gradients that are exchanged are allocated in full, whatever the model's size; DeepSpeed's own
        # default takes 2 GB in fp32.
        "zero_optimization": {"stage": config.parallel.zero_stage, "reduce_bucket_size": 50_000_000},
        # torch's AdamW is ours, not one of DeepSpeed's list.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # Telemetry prints; DeepSpeed should not.
        "steps_per_print": 10**12,
        "wall_clock_breakdown": False,
    }
    if config.parallel.pipeline_model_parallel_size > 1:
        # By default the tensor ranks each send a slice of what all are taken to hold. Under sequence parallelism, and
        # between the head's blocks, they hold different tensors, and would go on from a mixture without a word.
        settings["pipeline"] = {"pipe_partitioned": False, "grad_partitioned": False}
    if config.train.precision == "bf16":
        # Without the immediate update DeepSpeed 0.19.8 adds the running sum of the bf16 gradients to the fp32 sum at
        # every micro-batch: with four of them the gradient comes out 2.5 times too large.
        settings["bf16"] = {"enabled": True, "immediate_grad_update": True}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    if config.train.precision == "fp16":
        # The scale starts at 2^16, halves at each overflow, whose step is left out, and doubles after 1,000 good steps.
        settings["fp16"] = {"enabled": True, "initial_scale_power": 16, "loss_scale_window": 1000, "hysteresis": 1}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings
