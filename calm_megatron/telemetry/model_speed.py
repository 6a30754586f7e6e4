"""Tokens a second as FLOP/s of the model, and as a share of the hardware's peak (MFU)."""

from dataclasses import dataclass

import torch

from calm_megatron.config.schema import AutoencoderConfig, RunConfig
from calm_megatron.plan.devices import device_of
from calm_megatron.plan.pace import model_flops


@dataclass(frozen=True)
class ModelSpeed:
    """What is unknown is none, and then nothing is told of it."""

    flops_per_token: float | None = None
    """Of forward and backward pass, without what is computed again (PaLM, appendix B: arXiv 2204.02311)."""
    ranks: int = 1
    peak_flops: float | None = None
    """Of one device, in the run's precision."""

    @staticmethod
    def of(config: RunConfig, ranks: int, autoencoder: AutoencoderConfig | None = None) -> "ModelSpeed":
        """Of a run on the devices of this machine; an autoencoder's own training is not counted."""
        if isinstance(config.model, AutoencoderConfig):
            return ModelSpeed(ranks=ranks)
        flops = model_flops(config, autoencoder) / config.data.seq_length
        known = device_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        return ModelSpeed(flops, ranks, known.flops.get(config.train.precision) if known else None)

    def named(self, tokens_per_second: float | None) -> dict[str, float]:
        """As they are logged."""
        if tokens_per_second is None or self.flops_per_token is None:
            return {}
        flops = self.flops_per_token * tokens_per_second / self.ranks
        values = {"speed/model_tflops_per_rank": flops / 1e12}
        return values | ({"speed/mfu": flops / self.peak_flops} if self.peak_flops else {})
