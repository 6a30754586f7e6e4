"""Ranks of the golden tensor-parallel test: loss and whole gradients of the official weights, written by rank 0.

Usage: torchrun ... tensor_ranks_worker.py CHECKPOINT AUTOENCODER OUTPUT SEQUENCE_PARALLEL
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from calm_megatron.checkpoint.official_format import calm_config, load_official_autoencoder, read_official
from calm_megatron.config.schema import AutoencoderConfig
from calm_megatron.model import names
from calm_megatron.model.autoencoder import Autoencoder, FrozenAutoencoder
from calm_megatron.model.calm import Calm, CalmNoise
from calm_megatron.parallel import grid as parallel
from calm_megatron.parallel.tensor_ranks import TensorRanks


def rounding(autoencoder: Autoencoder) -> Autoencoder:
    """With the rounding of the official training mode, which the recorded loss has."""
    import dataclasses

    config: AutoencoderConfig = dataclasses.replace(autoencoder.config, round_embedding_to_bf16=True)
    autoencoder.config = config
    return autoencoder


def main() -> None:
    """Load, run one step forward and backward, gather."""
    checkpoint, autoencoder, output, sequence_parallel = sys.argv[1:]
    grid = parallel.start(5, tensor_size=2)
    config, weights = read_official(Path(checkpoint))
    frozen = FrozenAutoencoder(rounding(load_official_autoencoder(Path(autoencoder))))
    ranks = TensorRanks.of_this_process(sequence_parallel == "yes")
    model = Calm(calm_config(config, autoencoder), frozen, ranks=ranks).train()
    whole = names.from_official(weights, (name for name, _ in model.named_parameters()), model.config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(model.sharding.part(name, whole[name]))
    recorded = load_file(Path(checkpoint) / "io.safetensors")
    terms = model(recorded["input_ids"], CalmNoise(recorded["head_noise"], recorded["energy_eps"]))
    terms.loss.backward()
    results = {"loss": terms.loss.detach()}
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        parts = [torch.empty_like(weight.grad) for _ in range(grid.tensor_size)]
        dist.all_gather(parts, weight.grad.contiguous(), group=grid.tensor_group)
        if not model.sharding.is_cut(name):
            assert all(torch.equal(part, parts[0]) for part in parts), f"the copies of {name} differ"
        results[name] = model.sharding.whole(name, parts).contiguous()
    if grid.is_main:
        save_file(results, output)
    parallel.stop()


if __name__ == "__main__":
    main()
