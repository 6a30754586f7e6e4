"""The token-level baseline against plain formulae."""

import torch
import torch.nn.functional as F

from calm_megatron.config.schema import ArConfig
from calm_megatron.model.ar_baseline import ArBaseline
from calm_megatron.parallel.grid import Grid

CONFIG = ArConfig(
    vocab_size=50, num_layers=2, hidden_size=32, ffn_hidden_size=48, num_attention_heads=4, num_query_groups=2
)


def baseline(grid: Grid) -> ArBaseline:
    assert grid.world_size == 1
    model = ArBaseline(CONFIG)
    model.initialise(1)
    return model.eval()


def test_the_loss_is_the_cross_entropy_of_the_next_token(grid: Grid) -> None:
    model, ids_BT = baseline(grid), torch.randint(50, (3, 9))
    hidden_TBH = model.transform(model.embedding(ids_BT[:, :-1]), None, None)
    logits_TBV = F.linear(hidden_TBH, model.output.weight)
    expected = F.cross_entropy(logits_TBV.flatten(0, 1), ids_BT[:, 1:].transpose(0, 1).flatten())
    torch.testing.assert_close(model(ids_BT).loss, expected)


def test_a_token_sees_those_before_it_and_its_document_only(grid: Grid) -> None:
    model, ids_BT = baseline(grid), torch.randint(50, (1, 8))
    documents_BT = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    changed = ids_BT.clone()
    changed[0, 1] = (changed[0, 1] + 1) % 50
    before, after = (model.losses(ids, documents_BT)[:, 0] for ids in (ids_BT, changed))
    assert before[0] != after[0]
    assert torch.equal(before[3:], after[3:])
    crossing = [model.losses(ids)[:, 0] for ids in (ids_BT, changed)]
    assert not torch.equal(crossing[0][3:], crossing[1][3:])


def test_an_untrained_baseline_knows_nothing(grid: Grid) -> None:
    loss = baseline(grid)(torch.randint(50, (4, 32))).loss
    assert abs(loss.item() - torch.tensor(50.0).log().item()) < 0.1
