"""Training and validation of the token-level baseline."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import cast

from torch import Tensor, nn

from calm_megatron.config.schema import ArConfig, RunConfig
from calm_megatron.data.batch import Batch
from calm_megatron.data.data_splits import DataSplits
from calm_megatron.evaluate.token_model import validate_ar
from calm_megatron.model.ar_baseline import ArBaseline, ArTerms
from calm_megatron.parallel.grid import Grid
from calm_megatron.parallel.random_streams import RandomStreams
from calm_megatron.parallel.tensor_ranks import TensorRanks
from calm_megatron.train.task import dtype_of, evaluation_plan, own_layers


class ArTask:
    """Cross-entropy of the next token."""

    term_names: tuple[str, ...] = ("loss",)
    fingerprints: Mapping[str, str] = MappingProxyType({})

    def __init__(self, config: RunConfig, model: ArConfig, data: DataSplits, grid: Grid) -> None:
        self.config, self.model, self.data, self.grid = config, model, data, grid
        self.streams = RandomStreams(config.run.seed, grid.device)

    def build(self) -> nn.Module:
        """The baseline with its initial weights."""
        module = new_ar(self.config, self.model, self.grid)
        module.initialise(self.config.run.seed)
        return module.to(device=self.grid.device, dtype=dtype_of(self.config))

    def forward(self, module: Callable[..., ArTerms | Tensor], batch: Batch, step: int) -> ArTerms | Tensor:
        """Cross-entropy in nats per token."""
        return module(batch.ids_BT.to(self.grid.device, non_blocking=True), self._documents(batch))

    def validate(self, module: nn.Module, split: str, eval_iters: int) -> dict[str, object]:
        """Cross-entropy and perplexity over all predicted tokens of the split; BrierLM if the config asks for it."""
        plan = evaluation_plan(self.config, self.data, split, eval_iters, self.grid, self.streams)
        model = cast(ArBaseline, module)
        scores = validate_ar(model, plan, self.config.data.reset_attention_mask, self.config.evaluation)
        values: dict[str, object] = {
            "task": "ar",
            "split": split,
            "loss": scores.loss,
            "perplexity": math.exp(scores.loss),
            "tokens": scores.tokens,
        }
        if scores.brier is not None and scores.brier_known is not None:
            values |= scores.brier.as_dict()
            values |= {
                "brier_from_probabilities": list(scores.brier_known.brier),
                "brierlm_from_probabilities": scores.brier_known.brierlm,
            }
        return values

    def _documents(self, batch: Batch) -> Tensor | None:
        return (
            batch.documents_BP.to(self.grid.device, non_blocking=True)
            if self.config.data.reset_attention_mask
            else None
        )


def new_ar(config: RunConfig, model: ArConfig, grid: Grid) -> ArBaseline:
    """The baseline, or this rank's part of it, before its weights are drawn."""
    return ArBaseline(
        model,
        recompute=config.train.recompute_granularity == "full",
        ranks=TensorRanks.of_this_process(config.parallel.sequence_parallel),
        held=own_layers(config, grid),
    )
