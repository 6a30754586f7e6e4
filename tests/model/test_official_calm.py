"""CALM gives the figures of the official code: inputs, hidden states, samples, energy score, losses, gradients."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from calm_megatron.losses.energy_score import energy_score
from calm_megatron.model.calm import Calm
from calm_megatron.parallel.grid import Grid
from tests.official import energy_noise, load_official_calm, loss_noise, official_gradients, relative

Official = tuple[Calm, dict[str, Tensor]]


@pytest.fixture(params=["energy", "energy_k2"])
def official(golden: Callable[[str], Path], grid: Grid, request: pytest.FixtureRequest) -> Official:
    """An official CALM and its recorded tensors."""
    folder = golden(request.param)
    model = load_official_calm(folder)
    return model, load_file(folder / "io.safetensors")


def context(official: Official) -> Tensor:
    """All patches but the last."""
    model, tensors = official
    return tensors["input_ids"][:, : -model.config.patch_size]


def test_inputs_of_the_backbone(official: Official) -> None:
    model, tensors = official
    assert relative(model.patch_embedding(context(official)).transpose(0, 1), tensors["inputs_embeds"]) < 1e-5


def test_hidden_states(official: Official) -> None:
    model, tensors = official
    assert relative(model.hidden_states(context(official)), tensors["backbone_hidden"]) < 1e-5


@pytest.mark.parametrize(("for_training", "suffix"), [(False, ""), (True, "_trainmode")])
def test_targets(official: Official, for_training: bool, suffix: str) -> None:
    model, tensors = official
    K = model.config.patch_size
    mean_RZ, log_std_RZ = model.autoencoder.encode(tensors["input_ids"][:, K:].reshape(-1, K), for_training)
    assert relative(mean_RZ, tensors[f"target_mean{suffix}"]) < 1e-5
    assert relative(log_std_RZ, tensors[f"target_log_std{suffix}"]) < 1e-5


def test_samples_of_the_head(official: Official) -> None:
    model, tensors = official
    samples_NRZ = model.head.sample(tensors["backbone_hidden"].flatten(0, 1), loss_noise(tensors), 8)
    assert relative(samples_NRZ, tensors["head_latents"]) < 1e-5


def test_energy_terms_of_the_recorded_samples(official: Official) -> None:
    _, tensors = official
    mean_RZ, log_std_RZ = tensors["target_mean_trainmode"], tensors["target_log_std_trainmode"]
    terms = energy_score(tensors["head_latents"], mean_RZ, log_std_RZ, tensors["energy_eps"])
    assert relative(terms.score, tensors["energy_score"]) < 1e-5
    assert relative(terms.spread, tensors["energy_distance_x"]) < 1e-5
    assert relative(terms.distance, tensors["energy_distance_y"]) < 1e-5


def test_energy_terms_and_samples_of_the_whole_model(official: Official) -> None:
    model, tensors = official
    terms = model.train().score(tensors["input_ids"], loss_noise(tensors)).terms
    assert relative(-terms.loss_R, tensors["energy_score"]) < 1e-5
    assert relative(terms.samples_NRZ, tensors["head_latents"]) < 1e-5


def test_training_loss_and_every_gradient(official: Official) -> None:
    model, tensors = official
    terms = model.train()(tensors["input_ids"], loss_noise(tensors))
    assert float(terms.loss) == pytest.approx(float(tensors["train_loss"]), rel=1e-5)
    for name, recorded in (("samples", "energy_distance_x"), ("targets", "energy_distance_y")):
        part = terms.parts[f"energy/distance_{name}"]
        assert float(part) == pytest.approx(float(tensors[recorded].mean()), rel=1e-5)
    terms.loss.backward()
    gradients = official_gradients(model)
    recorded = {name.removeprefix("gradnorm/") for name in tensors if name.startswith("gradnorm/")}
    assert set(gradients) == recorded
    for name, gradient in gradients.items():
        expected = float(tensors[f"gradnorm/{name}"])
        assert float(gradient.double().norm()) == pytest.approx(expected, rel=1e-5), name
    full = [name.removeprefix("grad/") for name in tensors if name.startswith("grad/")]
    assert full
    for name in full:
        assert relative(gradients[name], tensors[f"grad/{name}"]) < 1e-5, name


def test_the_pad_row_gets_no_gradient(official: Official) -> None:
    model, tensors = official
    pad = model.config.pad_token_id
    assert pad is not None
    ids_BT = tensors["input_ids"].clone()
    ids_BT[:, 1] = pad
    model(ids_BT, loss_noise(tensors)).loss.backward()
    assert model.patch_embedding.embedding is not None
    gradient = model.patch_embedding.embedding.tokens.weight.grad
    assert gradient[pad].abs().max() == 0
    assert gradient[ids_BT[0, 0]].abs().max() > 0


def test_loss_and_gradient_norm_at_beta_one_and_a_half(official: Official) -> None:
    model, tensors = official
    if "train_loss_beta1.5" not in tensors:
        pytest.skip("this case has no figures for another beta")
    model.head.settings = dataclasses.replace(model.head.settings, beta=1.5)
    loss = model.train()(tensors["input_ids"], loss_noise(tensors)).loss
    assert float(loss) == pytest.approx(float(tensors["train_loss_beta1.5"]), rel=1e-5)
    loss.backward()
    norm = torch.stack([weight.grad.double().norm() for weight in model.parameters() if weight.grad is not None]).norm()
    assert float(norm) == pytest.approx(float(tensors["gradnorm_total_beta1.5"]), rel=1e-5)


def test_loss_with_patches_left_out(official: Official) -> None:
    model, tensors = official
    K = model.config.patch_size
    kept_BP = (tensors["masked_labels"] != -100).unflatten(1, (-1, K))[:, :, 0]
    kept_R = kept_BP[:, 1:].flatten()
    assert not kept_R.all()
    noise = energy_noise(tensors["head_noise"][:, kept_R], tensors["energy_eps"][:, kept_R])
    loss = model.train()(tensors["input_ids"], noise, kept_BP=kept_BP).loss
    assert float(loss) == pytest.approx(float(tensors["masked_train_loss"]), rel=1e-5)


def test_evaluation_loss_and_samples(official: Official) -> None:
    model, tensors = official
    noise = loss_noise(tensors, "eval")
    terms = model.eval().score(tensors["input_ids"], noise).terms
    assert float(terms.loss_R.mean()) == pytest.approx(float(tensors["eval_loss"]), rel=1e-5)
    assert relative(terms.samples_NRZ[:2], tensors["eval_latents_first2"]) < 1e-5


def test_tokens_of_the_samples(official: Official) -> None:
    model, tensors = official
    latent_2RZ = tensors["eval_latents_first2"]
    assert torch.equal(model.autoencoder.tokens(latent_2RZ), tensors["eval_predictions"].flatten(1, 2))
