"""Diffusion and flow matching give the figures of the official code: network, losses, gradients, samples, tokens."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from calm_megatron.config.schema import DiffusionHeadConfig, FlowHeadConfig
from calm_megatron.evaluate.brier import brier_terms
from calm_megatron.losses.gaussian_diffusion import cosine_abar, schedule
from calm_megatron.model.calm import Calm
from calm_megatron.parallel.grid import Grid
from tests.official import load_official_calm, loss_noise, official_gradients, relative, sampling_noise

Official = tuple[Calm, dict[str, Tensor]]


@pytest.fixture(params=["diffusion", "flow"])
def official(golden: Callable[[str], Path], grid: Grid, request: pytest.FixtureRequest) -> Official:
    """An official CALM and its recorded tensors."""
    folder = golden(request.param)
    model = load_official_calm(folder)
    return model, load_file(folder / "io.safetensors")


def test_the_head_is_told_by_the_config(official: Official) -> None:
    model, tensors = official
    kind = DiffusionHeadConfig if "train_noise" in tensors else FlowHeadConfig
    assert model.config.head == kind(num_layers=2, num_samples=8)


def test_inputs_and_hidden_states(official: Official) -> None:
    model, tensors = official
    context = tensors["input_ids"][:, : -model.config.patch_size]
    assert relative(model.patch_embedding(context).transpose(0, 1), tensors["inputs_embeds"]) < 1e-5
    assert relative(model.hidden_states(context), tensors["backbone_hidden"]) < 1e-5


def test_the_network(official: Official) -> None:
    model, tensors = official
    time_R = tensors["net_t"] if not tensors["net_t"].is_floating_point() else (tensors["net_t"] * 1000).long()
    said = model.head.says(tensors["net_c"], tensors["net_x"][None], time_R[None])[0]
    assert relative(said, tensors["net_out"]) < 1e-5


@pytest.mark.parametrize("recompute", [False, True])
def test_training_loss_and_every_gradient(official: Official, recompute: bool) -> None:
    model, tensors = official
    model.recompute = recompute
    terms = model.train()(tensors["input_ids"], loss_noise(tensors))
    assert float(terms.loss) == pytest.approx(float(tensors["train_loss"]), rel=1e-5)
    terms.loss.backward()
    gradients = official_gradients(model)
    assert set(gradients) == {name.removeprefix("gradnorm/") for name in tensors if name.startswith("gradnorm/")}
    for name, gradient in gradients.items():
        expected = float(tensors[f"gradnorm/{name}"])
        assert float(gradient.double().norm()) == pytest.approx(expected, rel=1e-5), name
    full = [name.removeprefix("grad/") for name in tensors if name.startswith("grad/")]
    assert full
    for name in full:
        assert relative(gradients[name], tensors[f"grad/{name}"]) < 1e-5, name


def test_the_loss_of_every_patch_and_its_parts(official: Official) -> None:
    model, tensors = official
    terms = model.train().score(tensors["input_ids"], loss_noise(tensors)).terms
    recorded = {"diffusion/noise_error": "train_mse", "diffusion/variational_bound": "train_vb"}
    samples = model.config.head.num_samples
    assert relative(terms.loss_R, tensors["train_loss_per_sample"].view(samples, -1).mean(dim=0)) < 1e-5
    for name, part_R in terms.parts.items():
        if name in recorded:
            assert relative(part_R, tensors[recorded[name]].view(samples, -1).mean(dim=0)) < 1e-5


def test_evaluation_loss(official: Official) -> None:
    model, tensors = official
    loss = model.eval()(tensors["input_ids"], loss_noise(tensors, "eval")).loss
    assert float(loss) == pytest.approx(float(tensors["eval_loss"]), rel=1e-5)


@torch.no_grad()
def test_samples_their_tokens_and_the_brier_scores(official: Official) -> None:
    model, tensors = official
    K = model.config.patch_size
    hidden_RH = tensors["backbone_hidden"].flatten(0, 1)
    latents_2RZ = model.draw(model.head, hidden_RH, sampling_noise(tensors), 2)
    assert relative(latents_2RZ, tensors["sample_latents"]) < 1e-5
    first, second = model.autoencoder.tokens(latents_2RZ)
    assert torch.equal(torch.stack([first, second]), tensors["eval_predictions"].flatten(1, 2))
    target_RK = tensors["input_ids"][:, K:].unflatten(1, (-1, K)).flatten(0, 1)
    terms_RO = brier_terms(first, second, target_RK)
    assert terms_RO.double().mean(dim=0).tolist() == pytest.approx([float(tensors[f"brier{n}"]) for n in range(1, 5)])


def test_schedules(golden: Callable[[str], Path]) -> None:
    tensors = load_file(golden("diffusion") / "io.safetensors")
    assert relative(torch.tensor(cosine_abar(), dtype=torch.float64), tensors["alphas_cumprod_1000"]) < 1e-12
    chain = schedule(100)
    assert list(chain.time) == tensors["gen_timestep_map"].tolist()
    assert relative(chain.log_beta.exp(), tensors["gen_betas_100"].float()) < 1e-6
