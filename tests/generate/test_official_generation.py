"""Samples, pools and generated text of the official code, from its checkpoints and its recorded noise."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from calm_megatron.generate.decode import generate
from calm_megatron.generate.options import Exponent, GenerationOptions
from calm_megatron.generate.temperature import select
from calm_megatron.model.calm import Calm
from calm_megatron.parallel.grid import one_rank
from tests.official import load_official_calm


class RecordedDraws:
    """Noise that the official code has used, (steps, B, n)."""

    def __init__(self, noise_SBn: Tensor) -> None:
        self.noise_SBn = noise_SBn

    def uniform(self, prompt: int, step: int, attempt: int, purpose: str, count: int, size: int) -> Tensor:
        """Noise of one sample."""
        assert (attempt, purpose, count, size) == (0, "head", 1, self.noise_SBn.shape[-1])
        return self.noise_SBn[step, prompt].unsqueeze(0) + 0.5

    def normal(self, prompt: int, step: int, attempt: int, purpose: str, count: int, size: int) -> Tensor:
        """The energy head has none."""
        raise AssertionError(purpose)

    def choice(self, prompt: int, step: int) -> float:
        """At temperature 1 nothing is chosen."""
        return 0.0


@pytest.fixture(scope="module", params=["energy", "energy_k2"])
def official(
    golden: Callable[[str], Path], request: pytest.FixtureRequest
) -> Iterator[tuple[Calm, dict[str, Tensor], dict[str, int]]]:
    """A checkpoint, its recorded tensors and its config."""
    folder = golden(request.param)
    with one_rank():
        model = load_official_calm(folder).eval()
        yield model, load_file(folder / "io.safetensors"), json.loads((folder / "config.json").read_text())


@torch.no_grad()
def test_samples_and_their_tokens(official: tuple[Calm, dict[str, Tensor], dict[str, int]]) -> None:
    model, tensors, _ = official
    hidden_RH = tensors["backbone_hidden"].flatten(0, 1)
    latent_NRZ = model.head.latents(hidden_RH, tensors["eval_head_noise"])[:2]
    torch.testing.assert_close(latent_NRZ, tensors["eval_latents_first2"], rtol=1e-5, atol=1e-5)
    assert torch.equal(model.autoencoder.tokens(latent_NRZ), tensors["eval_predictions"].flatten(1, 2))


@torch.no_grad()
def test_pools_of_temperature_sampling(official: tuple[Calm, dict[str, Tensor], dict[str, int]]) -> None:
    model, tensors, _ = official
    hidden_BH = tensors["backbone_hidden"][:, -1]
    pool_NBZ = model.head.latents(hidden_BH, tensors["temp_noise"].transpose(0, 1))
    assert torch.equal(model.autoencoder.tokens(pool_NBZ).transpose(0, 1), tensors["temp_pool_tokens"])
    single_1BZ = model.head.latents(hidden_BH, tensors["temp1_noise"].unsqueeze(0))
    pool_B1K = model.autoencoder.tokens(single_1BZ).transpose(0, 1)
    assert torch.equal(select(pool_B1K, Exponent(), torch.zeros(len(pool_B1K))), tensors["temp1_tokens"])


def test_generation_at_temperature_one(official: tuple[Calm, dict[str, Tensor], dict[str, int]]) -> None:
    """The official result has pads moved to the right, and keeps what stands behind an end of document in its patch."""
    model, tensors, config = official
    prompt_BT, expected_BT = tensors["generate_prompt"], tensors["generate_T1"]
    pad, patch_size = config["pad_token_id"], config["patch_size"]
    steps = len(tensors["generate_T1_noise"])
    options = GenerationOptions(max_new_tokens=steps * patch_size, partial_patch="pad")
    results = generate(
        model,
        prompt_BT.tolist(),
        options,
        eod_id=config["eos_token_id"],
        pad_id=pad,
        draws=RecordedDraws(tensors["generate_T1_noise"]),
    )
    for result, expected_T in zip(results, expected_BT.tolist(), strict=True):
        tokens = [token for token in itertools.chain(result.prompt_ids, *result.patches) if token != pad]
        assert tokens + [pad] * (len(expected_T) - len(tokens)) == expected_T
