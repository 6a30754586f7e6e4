"""AdamW as it is built: what is decayed, a step left out, and apex's way of counting in a stand-in for it."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from calm_megatron.config.schema import OptimizerConfig
from calm_megatron.train.optimizer import build_optimizer, with_counts_of_weights


class CountsInGroups(torch.optim.AdamW):
    """Counts updates where apex's FusedAdam does: in each group, from 1, whatever stands beside the weights."""

    def step(self, closure: Any = None) -> Any:
        """Update."""
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for weight in group["params"]:
                self.state[weight].pop("step", None)
                if "exp_avg" in self.state[weight]:
                    self.state[weight]["step"] = torch.tensor(group["step"] - 1.0)
        super().step(closure)
        for state in self.state.values():
            state.pop("step")


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3))


def update(net: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    for weight in net.parameters():
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
    optimizer.step()


def test_vectors_are_not_decayed_and_a_step_can_be_left_out() -> None:
    net = module()
    optimizer = build_optimizer(net, OptimizerConfig(weight_decay=0.1))
    decays = {weight: group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    assert {weight.dim(): decay for weight, decay in decays.items()} == {2: 0.1, 1: 0.0}
    before = copy.deepcopy(net.state_dict())
    optimizer.skip = True
    update(net, optimizer, 0)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    optimizer.skip = False
    update(net, optimizer, 0)
    assert not any(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("resumed", [False, True])
def test_one_that_counts_in_groups_counts_beside_the_weights(resumed: bool) -> None:
    """As checkpoints want it: they take the count from there, and put it there."""
    expected, ours, build = module(), module(), with_counts_of_weights(CountsInGroups)
    theirs, mine = torch.optim.AdamW(expected.parameters()), build(ours.parameters())
    for number in range(6):
        if number == 3 and resumed:
            moments, mine = mine.state, build(ours.parameters())
            mine.state.update(moments)
        if number == 1:
            mine.skip = True
            update(ours, mine, number)
            mine.skip = False
        update(expected, theirs, number)
        update(ours, mine, number)
    assert {int(state["step"]) for state in mine.state.values()} == {6}
    for weight, other in zip(ours.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-6, atol=1e-7)
