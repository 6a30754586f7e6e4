"""Norms keep their statistics in fp32, whatever the type of the input."""

import pytest
import torch

from calm_megatron.model.norms import LayerNorm, RMSNorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = RMSNorm(64, eps=1e-3)
    torch.nn.init.normal_(norm.weight)
    norm.to(dtype)
    hidden = (100 * torch.randn(5, 64)).to(dtype)
    exact = hidden.double() / (hidden.double().square().mean(dim=-1, keepdim=True) + 1e-3).sqrt()
    output = norm(hidden)
    assert output.dtype == dtype
    torch.testing.assert_close(output, norm.weight * exact.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_norm(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = LayerNorm(64, eps=1e-3)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    norm.to(dtype)
    hidden = (100 + torch.randn(5, 64)).to(dtype)
    centred = hidden.double() - hidden.double().mean(dim=-1, keepdim=True)
    exact = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-3).sqrt()
    output = norm(hidden)
    assert output.dtype == dtype
    expected = (exact * norm.weight.double() + norm.bias.double()).to(dtype)
    torch.testing.assert_close(output, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-4)
