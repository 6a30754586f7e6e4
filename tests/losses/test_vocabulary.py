"""Cross-entropy and argmax over a vocabulary, in chunks: the figures of torch's plain functions on all logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from calm_megatron.losses import vocabulary as module
from calm_megatron.losses.vocabulary import linear_argmax, linear_cross_entropy

S, H, V = 23, 8, 50


@pytest.fixture(autouse=True, params=[1 << 24, 4 * V, 1])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows at once, four, or one; and all of the vocabulary, or three tokens of it."""
    torch.manual_seed(0)
    monkeypatch.setattr(module, "CHUNK_LOGITS", request.param)
    monkeypatch.setattr(module, "CACHED_LOGITS", request.param)
    monkeypatch.setattr(module, "FEWEST_COLUMNS", 3)


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight = torch.randn(S, H, dtype=dtype), torch.randn(V, H, dtype=dtype)
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(V, (S,))


def gradients(loss: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(3 * loss, of)


def test_loss_and_gradients_are_those_of_all_logits() -> None:
    hidden, weight, ids = inputs()
    ours, plain = linear_cross_entropy(hidden, weight, ids), F.cross_entropy(hidden @ weight.T, ids)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(gradients(ours, hidden, weight), gradients(plain, hidden, weight))


def test_torch_has_the_same_function() -> None:
    hidden, weight, ids = inputs()
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=4, chunking_method=None)
    theirs = F.linear_cross_entropy(hidden, weight, ids, options=options)
    ours = linear_cross_entropy(hidden, weight, ids)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, hidden, weight), gradients(theirs, hidden, weight))


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_is_frozen_gets_no_gradient(frozen: int) -> None:
    hidden, weight, ids = inputs()
    (hidden, weight)[frozen].requires_grad_(False)
    linear_cross_entropy(hidden, weight, ids).backward()
    assert (hidden, weight)[frozen].grad is None and (hidden, weight)[1 - frozen].grad is not None


def test_without_gradients_it_is_a_number() -> None:
    hidden, weight, ids = inputs()
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, ids)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, F.cross_entropy(hidden @ weight.T, ids).detach())


def test_bf16_logits_are_summed_in_fp32() -> None:
    hidden, weight, ids = inputs(torch.bfloat16)
    loss = linear_cross_entropy(hidden, weight, ids)
    logits = (hidden @ weight.T).detach().float().requires_grad_()
    plain = F.cross_entropy(logits, ids)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain)
    (by_logits,) = torch.autograd.grad(plain * S, logits)
    by_hidden, by_weight = gradients(loss, hidden, weight)
    assert by_hidden.dtype == by_weight.dtype == torch.bfloat16
    # The gradient of the logits is rounded to bf16 before its product, as in the plain way.
    torch.testing.assert_close(by_hidden.float(), 3 / S * by_logits @ weight.float(), rtol=0.02, atol=0.02)
    torch.testing.assert_close(by_weight.float(), 3 / S * by_logits.T @ hidden.float(), rtol=0.02, atol=0.02)


def test_a_second_backward_pass_is_refused() -> None:
    loss = linear_cross_entropy(*inputs())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used up"):
        loss.backward()


def test_tokens_of_the_largest_logits() -> None:
    hidden, weight, _ = inputs()
    assert torch.equal(linear_argmax(hidden, weight), (hidden @ weight.T).argmax(dim=-1))
    assert linear_argmax(hidden[:0], weight).shape == (0,)
    assert linear_cross_entropy(hidden[:0], weight, torch.empty(0, dtype=torch.int64)).isnan()


def test_of_equal_logits_the_first_counts() -> None:
    hidden, weight, _ = (each.detach().round() for each in inputs())  # sums of whole numbers are exact in any order
    logits = hidden @ torch.cat([weight, weight]).T
    assert torch.equal(linear_argmax(hidden, torch.cat([weight, weight])), torch.from_numpy(logits.numpy().argmax(-1)))
