"""Weights of a model as tensor ranks and files share them, cut here by the table of cuts alone."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from calm_megatron.checkpoint.pieces import KINDS, Place
from calm_megatron.checkpoint.shards import write_shard
from calm_megatron.config.schema import ArConfig, BackboneConfig, CalmConfig
from calm_megatron.model.names import EMBEDDING
from calm_megatron.model.sharding import Sharding

SIZES = {
    "vocab_size": 77, "num_layers": 1, "hidden_size": 16, "ffn_hidden_size": 24, "num_attention_heads": 8,
    "num_query_groups": 4,
}  # fmt: skip
MODELS: dict[str, BackboneConfig] = {"calm": CalmConfig(autoencoder="", **SIZES), "ar": ArConfig(**SIZES)}  # type: ignore[arg-type]
_BACKBONE = {
    "layers.0.self_attention.linear_qkv.weight": (32, 16),
    "layers.0.self_attention.linear_proj.weight": (16, 16),
    "layers.0.mlp.linear_fc1.weight": (48, 16),
    "layers.0.mlp.linear_fc2.weight": (16, 24),
    "final_norm.weight": (16,),
}
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "calm": {
        EMBEDDING: (77, 16),
        "patch_embedding.compression.linear_in.bias": (32,),
        "patch_embedding.compression.linear_out.weight": (16, 32),
        "head.blocks.0.linear_mid.weight": (16, 16),
        **_BACKBONE,
    },
    "ar": {"embedding.tokens.weight": (77, 16), "output.weight": (77, 16), **_BACKBONE},
}

Whole = dict[tuple[str, str], Tensor]
"""By kind and name."""


def whole_state(model: str) -> Whole:
    """Random weights and moments."""
    dice = torch.Generator().manual_seed(1)
    return {(kind, name): torch.randn(shape, generator=dice) for kind in KINDS for name, shape in SHAPES[model].items()}


@dataclass(frozen=True)
class CutState:
    """The parts of a state over `ranks` tensor ranks, each in `files` runs."""

    model: str
    ranks: int
    files: int

    def part(self, rank: int, name: str, whole: Tensor) -> Tensor:
        """A rank's part, or the copy."""
        return Sharding(MODELS[self.model], rank, self.ranks).part(name, whole)

    def places(self, rank: int, number: int) -> list[Place]:
        """What a file of a rank holds; copies are in the files of the first rank alone."""
        found = []
        for name, shape in SHAPES[self.model].items():
            cut = Sharding(MODELS[self.model], rank, self.ranks).is_cut(name)
            if not cut and rank:
                continue
            part = self.part(rank, name, torch.empty(shape))
            place = Place(name, rank, self.ranks if cut else 1, tuple(part.shape), 0, part.numel())
            found.append(place.share(number, self.files))
        return [place for place in found if place.start < place.stop]

    def write(self, folder: Path, whole: Whole) -> list[Path]:
        """All files."""
        folder.mkdir()
        paths = []
        for rank in range(self.ranks):
            for number in range(self.files):
                paths.append(folder / f"rank_{rank * self.files + number:05d}.safetensors")
                write_shard(
                    paths[-1],
                    self.places(rank, number),
                    lambda kind, place: self.run(whole, kind, place),
                )
        return paths

    def run(self, whole: Whole, kind: str, place: Place) -> Tensor:
        """What is to be found at a place."""
        part = self.part(place.part, place.name, whole[kind, place.name])
        return part.flatten()[place.start : place.stop]
