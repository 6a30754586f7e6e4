"""Training and validation of the autoencoder."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from calm_megatron.config.schema import AutoencoderConfig, RunConfig
from calm_megatron.data.batch import Batch
from calm_megatron.data.data_splits import DataSplits
from calm_megatron.evaluate.validation import validate_autoencoder
from calm_megatron.losses.reconstruction import ReconstructionTerms
from calm_megatron.model.autoencoder import Autoencoder, AutoencoderNoise
from calm_megatron.model.initialise import initialise
from calm_megatron.parallel.grid import Grid
from calm_megatron.parallel.random_streams import RandomStreams
from calm_megatron.train.task import dtype_of, evaluation_plan


class AutoencoderTask:
    """Cross-entropy and clipped KL on batches of patches."""

    term_names: tuple[str, ...] = ("loss", "autoencoder/cross_entropy", "autoencoder/kl")
    fingerprints: Mapping[str, str] = MappingProxyType({})

    def __init__(self, config: RunConfig, model: AutoencoderConfig, data: DataSplits, grid: Grid) -> None:
        self.config, self.model, self.data, self.grid = config, model, data, grid
        self.streams = RandomStreams(config.run.seed, grid.device)

    def build(self) -> nn.Module:
        """The autoencoder with its initial weights."""
        module = Autoencoder(self.model)
        initialise(module, self.config.run.seed, self.model.init_method_std)
        return module.to(device=self.grid.device, dtype=dtype_of(self.config))

    def forward(self, module: Callable[..., ReconstructionTerms], batch: Batch, step: int) -> ReconstructionTerms:
        """Loss, cross-entropy (nats per token) and clipped KL (nats per patch)."""
        ids_RK = batch.ids_BT.to(self.grid.device, non_blocking=True).view(-1, self.model.patch_size)
        sequences = batch.sequence_ids_B.tolist()
        noise = AutoencoderNoise.draw(self.model, self.streams, step, sequences, len(ids_RK) // len(sequences))
        return module(ids_RK, noise)

    def validate(self, module: nn.Module, split: str, eval_iters: int) -> dict[str, object]:
        """Accuracies, robustness, collapsed dimensions."""
        plan = evaluation_plan(self.config, self.data, split, eval_iters, self.grid, self.streams)
        assert isinstance(module, Autoencoder)
        scores = validate_autoencoder(module, plan, self.config.evaluation.noise_sigmas)
        values = dataclasses.asdict(scores)
        values["robustness"] = [{"sigma": s, "token_accuracy": a} for s, a in scores.robustness]
        return {"task": "autoencoder", "split": split, "latent_size": self.model.latent_size, **values}
