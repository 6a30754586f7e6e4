"""The learning rate as a pure function of the step."""

import math

from calm_megatron.config.schema import OptimizerConfig


def learning_rate(step: int, config: OptimizerConfig, train_iters: int) -> float:
    """Learning rate of the update that makes step `step` (counted from 0) into `step + 1`.

    Warm-up rises linearly from lr / lr_warmup_iters to lr, for every style, `constant` included. The decay starts where
    the warm-up ends and reaches min_lr at lr_decay_iters.
    """
    warmup, end = config.lr_warmup_iters, config.lr_decay_iters or train_iters
    if step < warmup:
        return config.lr * (step + 1) / warmup
    match config.lr_decay_style:
        case "constant":
            return config.lr
        case "WSD":
            length = config.lr_wsd_decay_iters or 0
            return _decayed(config, config.lr_wsd_decay_style, (step - (end - length)) / length)
        case style:
            return _decayed(config, style, (step - warmup) / (end - warmup))


def _decayed(config: OptimizerConfig, style: str, progress: float) -> float:
    """Between lr (progress 0 or less) and min_lr (progress 1 or more)."""
    progress = min(max(progress, 0.0), 1.0)
    if style == "exponential":
        return config.lr * math.exp(math.log(config.min_lr / config.lr) * progress)
    share = 1 - progress if style == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.min_lr + (config.lr - config.min_lr) * share
