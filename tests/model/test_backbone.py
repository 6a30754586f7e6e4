"""Attention looks where it may: backwards, within documents, and through the cache as without it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from calm_megatron.model.attention import KVCache
from calm_megatron.model.backbone import document_mask, rotary_angles
from calm_megatron.model.calm import Calm

Build = Callable[..., Calm]
K, P = 4, 8
DOCUMENTS = [0, 0, 0, 1, 1, 2, 2, 2]


def with_other_patch(ids_BT: Tensor, patch: int) -> Tensor:
    """The same ids but for the first token of one patch."""
    changed = ids_BT.clone()
    changed[:, patch * K] = (changed[:, patch * K] + 1) % 22
    return changed


def touched(before_BPH: Tensor, after_BPH: Tensor) -> list[int]:
    """Patches whose hidden states differ."""
    return [p for p in range(before_BPH.shape[1]) if not torch.equal(before_BPH[:, p], after_BPH[:, p])]


@torch.no_grad()
def test_a_patch_reaches_only_itself_and_what_follows(build: Build, ids_BT: Tensor) -> None:
    model = build()
    before = model.hidden_states(ids_BT)
    for patch in range(P):
        assert touched(before, model.hidden_states(with_other_patch(ids_BT, patch))) == list(range(patch, P))


@torch.no_grad()
def test_documents_do_not_see_each_other(build: Build, ids_BT: Tensor) -> None:
    model = build()
    documents_BP = torch.tensor([DOCUMENTS] * 2)
    before = model.hidden_states(ids_BT, documents_BP)
    for patch, document in enumerate(DOCUMENTS):
        after = model.hidden_states(with_other_patch(ids_BT, patch), documents_BP)
        assert touched(before, after) == [p for p in range(patch, P) if DOCUMENTS[p] == document]


@torch.no_grad()
def test_each_sequence_has_its_own_documents(build: Build, ids_BT: Tensor) -> None:
    model = build()
    other = [0, 0, 0, 0, 0, 0, 0, 1]
    both = model.hidden_states(ids_BT, torch.tensor([DOCUMENTS, other]))
    for row, documents in enumerate((DOCUMENTS, other)):
        alone = model.hidden_states(ids_BT[row : row + 1], torch.tensor([documents]))
        torch.testing.assert_close(both[row : row + 1], alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_masked_document_is_as_if_alone(build: Build, ids_BT: Tensor) -> None:
    """Rotary positions are relative, so that its place in the sequence does not matter either."""
    model = build()
    packed = model.hidden_states(ids_BT, torch.tensor([DOCUMENTS] * 2))
    for document in range(3):
        patches = [p for p in range(P) if DOCUMENTS[p] == document]
        tokens = slice(patches[0] * K, (patches[-1] + 1) * K)
        alone = model.hidden_states(ids_BT[:, tokens])
        torch.testing.assert_close(packed[:, patches], alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_order_matters_without_a_mask(build: Build, ids_BT: Tensor) -> None:
    model = build()
    swapped = torch.cat([ids_BT[:, K : 2 * K], ids_BT[:, :K], ids_BT[:, 2 * K :]], dim=1)
    last, other = model.hidden_states(ids_BT)[:, -1], model.hidden_states(swapped)[:, -1]
    assert float((last - other).abs().max()) > 1e-3


def test_the_mask_written_out() -> None:
    mask = document_mask(torch.tensor([[0, 0, 1]]))
    assert mask.shape == (1, 1, 3, 3)
    assert mask[0, 0].tolist() == [[True, False, False], [True, True, False], [False, False, True]]


@torch.no_grad()
@pytest.mark.parametrize("groups", [None, 1, 2])
@pytest.mark.parametrize("steps", [[8], [1] * 8, [5, 1, 1, 1], [3, 1, 4], [2, 2, 2, 2], [1, 7]])
def test_the_cache_changes_nothing(build: Build, ids_BT: Tensor, groups: int | None, steps: list[int]) -> None:
    model = build(num_query_groups=groups)
    whole = model.hidden_states(ids_BT)
    cache = model.new_cache(batch_size=2, max_patches=P)
    pieces = [model.hidden_states(piece, cache=cache) for piece in ids_BT.split([step * K for step in steps], dim=1)]
    assert cache.length == P
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.hidden_states(ids_BT), whole)  # and leaves nothing behind


@torch.no_grad()
def test_a_full_cache_is_an_error_and_is_let_go(build: Build, ids_BT: Tensor) -> None:
    model = build()
    cache = model.new_cache(batch_size=2, max_patches=P - 1)
    with pytest.raises(ValueError, match="the cache holds 7 patches, 8 are needed"):
        model.hidden_states(ids_BT, cache=cache)
    assert model.hidden_states(ids_BT).shape == (2, P, 32)


@torch.no_grad()
def test_the_cache_has_one_place_per_group(build: Build) -> None:
    model = build()
    cache = KVCache(model.config, batch_size=2, max_patches=5, like=torch.empty(0))
    keys, values = cache.append(1, torch.ones(2, 2, 3, 8), torch.zeros(2, 2, 3, 8))
    assert keys.shape == values.shape == (2, 2, 3, 8)
    assert cache.length == 0  # until all layers have appended


@torch.no_grad()
def test_grouped_queries_are_repeated_key_heads(build: Build, ids_BT: Tensor) -> None:
    """Two groups for four heads give what four groups give whose keys and values are the two, each twice."""
    grouped, full = build(num_query_groups=2), build(num_query_groups=None)
    weights = grouped.state_dict()
    for name, weight in weights.items():
        if name.endswith("linear_qkv.weight"):
            groups = weight.unflatten(0, (2, 4, 8))  # per group: two heads of queries, then key, then value
            per_head = [torch.cat([groups[h // 2, h % 2], groups[h // 2, 2], groups[h // 2, 3]]) for h in range(4)]
            weights[name] = torch.cat(per_head)
    full.load_state_dict(weights)
    expected = grouped.hidden_states(ids_BT)
    torch.testing.assert_close(full.hidden_states(ids_BT), expected, rtol=1e-5, atol=1e-5)


def test_rotary_angles_of_written_out_positions() -> None:
    angles = rotary_angles(head_size=4, base=100.0, positions=torch.tensor([2, 3]))
    assert angles.shape == (2, 1, 1, 4)
    expected = torch.tensor([[2.0, 0.2, 2.0, 0.2], [3.0, 0.3, 3.0, 0.3]])  # 100^0 and 100^-1/2, halves repeated
    torch.testing.assert_close(angles[:, 0, 0], expected)
    by_row = rotary_angles(head_size=4, base=100.0, positions=torch.tensor([[3, 2], [2, 3]]))
    torch.testing.assert_close(by_row[0, :, 0], expected.flip(0))
    torch.testing.assert_close(by_row[1, :, 0], expected)


def test_recomputation_gives_the_same_gradients(build: Build, ids_BT: Tensor) -> None:
    gradients = []
    for recompute in (False, True):
        model = build(recompute=recompute).train()
        hidden = model.hidden_states(ids_BT, torch.tensor([DOCUMENTS] * 2))
        hidden.square().sum().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert any(name.startswith("layers.") for name in gradients[0])
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name
