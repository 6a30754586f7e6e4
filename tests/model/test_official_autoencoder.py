"""The autoencoder gives the figures of the official code: posterior, logits, losses, gradients."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from calm_megatron.checkpoint.load import load_autoencoder
from calm_megatron.losses.reconstruction import clipped_kl
from calm_megatron.model.autoencoder import Autoencoder, AutoencoderNoise

Official = tuple[Autoencoder, dict[str, Tensor]]


@pytest.fixture(scope="module", params=["ae", "ae_k2"])
def official(golden: Callable[[str], Path], request: pytest.FixtureRequest) -> Official:
    """An official autoencoder and its recorded tensors."""
    folder = golden(request.param)
    return load_autoencoder(folder), load_file(folder / "io.safetensors")


def relative(ours: Tensor, expected: Tensor) -> float:
    assert ours.shape == expected.shape
    return float((ours.detach().double() - expected.double()).abs().max() / expected.double().abs().max())


def trainable(module: Autoencoder, dropout: float) -> Autoencoder:
    """A copy that trains as the official code does, bf16 rounding included."""
    config = dataclasses.replace(module.config, round_embedding_to_bf16=True, dropout=dropout)
    copy = Autoencoder(config)
    copy.load_state_dict(module.state_dict())
    return copy


def ids_of(official: Official) -> Tensor:
    module, tensors = official
    return tensors["input_ids"].view(-1, module.config.patch_size)


@pytest.mark.parametrize(("rounded", "suffix"), [(False, ""), (True, "_trainmode")])
def test_posterior(official: Official, rounded: bool, suffix: str) -> None:
    module, tensors = official
    mean_RZ, log_std_RZ = module.encoder(ids_of(official), rounded)
    assert relative(mean_RZ, tensors[f"enc_mean{suffix}"].flatten(0, 1)) < 1e-5
    assert relative(log_std_RZ, tensors[f"enc_log_std{suffix}"].flatten(0, 1)) < 1e-5


def test_the_rounding_shows(official: Official) -> None:
    module, tensors = official
    mean_RZ, _ = module.encoder(ids_of(official))
    assert relative(mean_RZ, tensors["enc_mean_trainmode"].flatten(0, 1)) > 1e-4


def test_logits(official: Official) -> None:
    module, tensors = official
    assert relative(module.logits(tensors["dec_latents"][0]).flatten(0, 1), tensors["dec_logits"][0]) < 1e-5


def test_evaluation_loss(official: Official) -> None:
    module, tensors = official
    mean_RZ, log_std_RZ = module.encoder(ids_of(official))
    latent_RZ = mean_RZ + tensors["eval_eps"].squeeze(1) * log_std_RZ.exp()
    assert float(module.cross_entropy(latent_RZ, ids_of(official))) == pytest.approx(
        float(tensors["eval_loss"]), rel=1e-5
    )


def test_kl_and_its_clamp(official: Official) -> None:
    module, tensors = official
    mean_RZ, log_std_RZ = (tensor.detach() for tensor in module.encoder(ids_of(official), rounded=True))
    mean_RZ.requires_grad_()
    kl = clipped_kl(mean_RZ, log_std_RZ, module.config.kl_clamp)
    assert float(kl) == pytest.approx(float(tensors["train_kl_nodrop"]), rel=1e-5)
    assert float(clipped_kl(mean_RZ, log_std_RZ, 0.0)) == pytest.approx(float(tensors["train_kl_unclamped"]), rel=1e-5)
    kl.backward()
    assert mean_RZ.grad is not None
    assert float((mean_RZ.grad == 0).double().mean()) == pytest.approx(float(tensors["kl_frac_clamped"]))


def test_training_loss_and_gradients_without_dropout(official: Official) -> None:
    module, tensors = official
    model = trainable(module, dropout=0.0)
    ids_RK = ids_of(official)
    ones_RZ = torch.ones(len(ids_RK), model.config.latent_size)
    terms = model(ids_RK, AutoencoderNoise(torch.ones(ids_RK.shape), tensors["train_eps"].squeeze(1), ones_RZ))
    assert float(terms.loss) == pytest.approx(float(tensors["train_loss_nodrop"]), rel=1e-5)
    assert float(terms.cross_entropy) == pytest.approx(float(tensors["train_ce_nodrop"]), rel=1e-5)
    assert float(terms.kl) == pytest.approx(float(tensors["train_kl_nodrop"]), rel=1e-5)
    terms.loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    recorded = {name.removeprefix("gradnorm/") for name in tensors if name.startswith("gradnorm/")}
    assert set(gradients) == recorded
    for name, gradient in gradients.items():
        assert gradient is not None
        # The bf16 rounding of the embedding magnifies the last digits of the forward pass.
        expected = float(tensors[f"gradnorm/{name}"])
        assert float(gradient.double().norm()) == pytest.approx(expected, rel=3e-4), name
    for name in [name for name in tensors if name.startswith("grad/")]:
        weight, _, rows = name.removeprefix("grad/").partition("[:")
        gradient = gradients[weight]
        assert gradient is not None
        count = int(rows.removesuffix("]")) if rows else len(gradient)
        assert relative(gradient[:count], tensors[name]) < 3e-4, name


def test_training_loss_with_the_recorded_dropout(official: Official) -> None:
    module, tensors = official
    model = trainable(module, dropout=0.15)
    noise = AutoencoderNoise(
        token_uniform_RK=tensors["drop_token_u"],
        latent_normal_RZ=tensors["drop_eps"].squeeze(1),
        latent_uniform_RZ=tensors["drop_latent_keep"].squeeze(1),  # 1 is kept and 0 is dropped, at any rate between
    )
    loss = model(ids_of(official), noise).loss
    assert float(loss) == pytest.approx(float(tensors["train_loss_drop"]), rel=1e-5)
