"""AdamW with decay on matrices only."""

from typing import Any

import torch
from torch import nn

from calm_megatron.config.schema import OptimizerConfig


class SkippableAdamW(torch.optim.AdamW):
    """AdamW whose next step can be left out from within any engine: the engine clears the gradients as ever."""

    skip = False

    def step(self, closure: Any = None) -> Any:
        """Update, unless `skip` is set."""
        return None if self.skip else super().step(closure)


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> SkippableAdamW:
    """torch's fused AdamW; vectors (biases, norm weights) are not decayed, embeddings are, as in the official runs."""
    matrices = [weight for weight in module.parameters() if weight.dim() > 1]
    vectors = [weight for weight in module.parameters() if weight.dim() <= 1]
    return SkippableAdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=config.lr,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
        fused=True,
    )
