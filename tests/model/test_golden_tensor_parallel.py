"""The official energy model on two tensor ranks: the official loss and gradients."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from calm_megatron.config.schema import CalmConfig
from calm_megatron.model import names
from tests.small_runs import ROOT

WORKER = ROOT / "tests" / "model" / "tensor_ranks_worker.py"
CONFIG = CalmConfig(
    autoencoder="", vocab_size=512, num_layers=4, hidden_size=64, ffn_hidden_size=176, num_attention_heads=4,
    num_query_groups=2,
)  # fmt: skip


@pytest.mark.parametrize("sequence_parallel", ["no", "yes"])
def test_two_tensor_ranks_give_the_official_loss_and_gradients(
    tmp_path: Path,
    golden: Callable[[str], Path],
    program: Callable[..., subprocess.CompletedProcess[str]],
    sequence_parallel: str,
) -> None:
    checkpoint, output = golden("energy"), tmp_path / "results.safetensors"
    recorded = load_file(checkpoint / "io.safetensors")
    if sequence_parallel == "yes" and recorded["input_ids"].shape[1] // 4 % 2:
        pytest.skip("the recorded sequences do not divide")
    done = program(WORKER, checkpoint, golden("ae"), output, sequence_parallel, ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    results = load_file(output)
    torch.testing.assert_close(results.pop("loss").double(), recorded["train_loss"].double(), rtol=1e-5, atol=0)
    compared = 0
    for name, gradient in results.items():
        entry, officials = names.entry_of(name)
        for official, part in zip(officials, names.split(gradient, entry.join, CONFIG), strict=True):
            norm = recorded[f"gradnorm/{official}"].item()
            assert part.double().norm().item() == pytest.approx(norm, rel=1e-4), official
            if f"grad/{official}" in recorded:
                expected = recorded[f"grad/{official}"]
                torch.testing.assert_close(part, expected, rtol=0, atol=1e-4 * expected.abs().max().item())
            compared += 1
    assert compared > 40
