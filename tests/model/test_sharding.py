"""Parts of weights over the tensor ranks: they make up the whole again, and initial weights do not depend on them."""

import pytest
import torch

from calm_megatron.config.schema import CalmConfig
from calm_megatron.model.names import CALM_ENTRIES, EMBEDDING, entry_of
from calm_megatron.model.sharding import Sharding, padded_vocab_size

CONFIG = CalmConfig(
    autoencoder="", vocab_size=37, num_layers=1, hidden_size=16, ffn_hidden_size=24, num_attention_heads=8,
    num_query_groups=4,
)  # fmt: skip
SHAPES = {
    EMBEDDING: (37, 16),
    "layers.0.self_attention.linear_qkv.weight": (32, 16),
    "layers.0.mlp.linear_fc1.weight": (48, 16),
    "layers.0.mlp.linear_fc2.weight": (16, 24),
    "layers.0.self_attention.linear_proj.weight": (16, 16),
    "patch_embedding.compression.linear_in.bias": (32,),
    "final_norm.weight": (16,),
}


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", SHAPES)
def test_the_parts_make_up_the_whole(name: str, size: int) -> None:
    whole = torch.randn(SHAPES[name])
    parts = [Sharding(CONFIG, rank, size).part(name, whole) for rank in range(size)]
    assert len({part.shape for part in parts}) == 1
    for rank in range(size):
        sharding = Sharding(CONFIG, rank, size)
        assert sharding.whole_shape(name, parts[rank].shape) == SHAPES[name]
        assert torch.equal(sharding.whole(name, parts), whole)


def test_gate_and_up_are_cut_one_by_one() -> None:
    whole = torch.arange(48.0)[:, None].expand(48, 16)
    part = Sharding(CONFIG, 1, 2).part("layers.0.mlp.linear_fc1.weight", whole)
    assert part[:, 0].tolist() == [*range(12, 24), *range(36, 48)]


def test_a_rank_gets_whole_query_groups() -> None:
    # A group holds two query heads, a key and a value head of two rows each: eight rows.
    whole = torch.arange(32.0)[:, None].expand(32, 16)
    part = Sharding(CONFIG, 2, 4).part("layers.0.self_attention.linear_qkv.weight", whole)
    assert part[:, 0].tolist() == list(range(16, 24))


def test_rows_beyond_the_vocabulary_are_zero() -> None:
    assert padded_vocab_size(37, 4) == 40
    last = Sharding(CONFIG, 3, 4).part(EMBEDDING, torch.ones(37, 16))
    assert last.shape == (10, 16)
    assert last[:7].eq(1).all() and last[7:].eq(0).all()


def test_copies_are_what_the_table_calls_whole() -> None:
    cut = {entry.ours for entry in CALM_ENTRIES if entry.cut != "whole"}
    assert {name for name in SHAPES if Sharding(CONFIG, 0, 2).is_cut(name)} == {
        name for name in SHAPES if entry_of(name)[0].ours in cut
    }
    assert not any(entry.ours.startswith("head.") for entry in CALM_ENTRIES if entry.cut != "whole")
