"""AdamW with decay on matrices only."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from calm_megatron.config.schema import OptimizerConfig
from calm_megatron.model.kernels import apex_fused_adam


class Skippable(torch.optim.Optimizer):
    """One whose next step can be left out from within any engine: the engine clears the gradients as ever."""

    skip = False

    def step(self, closure: Any = None) -> Any:
        """Update, unless `skip` is set."""
        return None if self.skip else super().step(closure)


class SkippableAdamW(Skippable, torch.optim.AdamW):
    """torch's."""


def with_counts_of_weights(fused_adam: type[Any]) -> Callable[..., Skippable]:
    """A skippable kind of apex's FusedAdam that counts its updates where torch does, and so do checkpoints.

    apex counts in each group of weights, torch beside each weight.
    """

    class FusedAdamW(Skippable, fused_adam):  # type: ignore[misc]
        """apex's."""

        def step(self, closure: Any = None) -> Any:
            """Update, unless `skip` is set."""
            if self.skip:
                return None
            for group in self.param_groups:
                if "step" not in group:  # the first update of this process: a checkpoint may have been taken up
                    counts = [int(self.state[weight]["step"]) for weight in group["params"] if weight in self.state]
                    if counts:
                        group["step"] = max(counts)
            found = super().step(closure)
            for group in self.param_groups:
                count = torch.tensor(float(group["step"]))
                for weight in group["params"]:
                    if weight in self.state:
                        self.state[weight]["step"] = count
            return found

    return FusedAdamW


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> Skippable:
    """AdamW, fused; vectors (biases, norm weights) are not decayed, embeddings are, as in the official runs.

    It is apex's where that is built (model/kernels.py), else torch's. Either has `skip`.
    """
    matrices = [weight for weight in module.parameters() if weight.dim() > 1]
    vectors = [weight for weight in module.parameters() if weight.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    betas = (config.adam_beta1, config.adam_beta2)
    settings: dict[str, Any] = {"lr": config.lr, "betas": betas, "eps": config.adam_eps}
    if (fused_adam := apex_fused_adam()) is not None:
        return with_counts_of_weights(fused_adam)(groups, adam_w_mode=True, **settings)
    return SkippableAdamW(groups, fused=True, **settings)
