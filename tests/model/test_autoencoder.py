"""The autoencoder beyond the official figures: dropout, independence of patches, noise."""

import dataclasses

import pytest
import torch
from torch import Tensor

from calm_megatron.model.autoencoder import Autoencoder, AutoencoderNoise
from calm_megatron.parallel.random_streams import RandomStreams

K, Z, V = 4, 6, 23


@pytest.fixture
def ids_RK() -> Tensor:
    return torch.randint(1, V, (10, K), generator=torch.Generator().manual_seed(0))


def noise_of(module: Autoencoder, sequences: list[int], patches: int, step: int = 0) -> AutoencoderNoise:
    return AutoencoderNoise.draw(module.config, RandomStreams(1, torch.device("cpu")), step, sequences, patches)


def test_patches_do_not_see_each_other(autoencoder: Autoencoder, ids_RK: Tensor) -> None:
    mean_RZ, log_std_RZ = autoencoder.encoder(ids_RK)
    for row in range(len(ids_RK)):
        alone = autoencoder.encoder(ids_RK[row : row + 1])
        torch.testing.assert_close(alone[0], mean_RZ[row : row + 1])
        torch.testing.assert_close(alone[1], log_std_RZ[row : row + 1])
    logits_RKV = autoencoder.logits(mean_RZ)
    assert logits_RKV.shape == (10, K, V)
    torch.testing.assert_close(autoencoder.logits(mean_RZ[3:4])[0], logits_RKV[3])


def test_every_token_of_a_patch_matters(autoencoder: Autoencoder, ids_RK: Tensor) -> None:
    mean_RZ, _ = autoencoder.encoder(ids_RK)
    for place in range(K):
        changed = ids_RK.clone()
        changed[:, place] = (changed[:, place] + 1) % V
        assert float((autoencoder.encoder(changed)[0] - mean_RZ).abs().min(dim=0).values.max()) > 0


def test_dropped_tokens_become_token_zero_in_the_input_only(autoencoder: Autoencoder, ids_RK: Tensor) -> None:
    autoencoder.config = dataclasses.replace(autoencoder.config, dropout=0.25)
    zeros_RZ = torch.zeros(len(ids_RK), Z)
    uniform_RK = torch.full(ids_RK.shape, 0.2501)
    uniform_RK[:, 0] = 0.25  # not above the rate
    terms = autoencoder(ids_RK, AutoencoderNoise(uniform_RK, zeros_RZ, zeros_RZ + 0.9))
    without = ids_RK.clone()
    without[:, 0] = 0
    logits_RKV = autoencoder.logits(autoencoder.encoder(without)[0] / 0.75)
    expected = torch.nn.functional.cross_entropy(logits_RKV.flatten(0, 1), ids_RK.flatten())
    assert float(terms.cross_entropy) == pytest.approx(float(expected), rel=1e-5)


def test_kept_latent_elements_are_scaled_up(autoencoder: Autoencoder, ids_RK: Tensor) -> None:
    autoencoder.config = dataclasses.replace(autoencoder.config, dropout=0.5)
    seen: list[Tensor] = []
    autoencoder.decoder.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    uniform_RZ = torch.rand(len(ids_RK), Z)
    normal_RZ = torch.randn(len(ids_RK), Z)
    autoencoder(ids_RK, AutoencoderNoise(torch.ones(ids_RK.shape), normal_RZ, uniform_RZ))
    mean_RZ, log_std_RZ = autoencoder.encoder(ids_RK)
    latent_RZ = mean_RZ + normal_RZ * log_std_RZ.exp()
    torch.testing.assert_close(seen[0], torch.where(uniform_RZ < 0.5, 0.0, 2 * latent_RZ))


def test_noise_follows_the_sequence(autoencoder: Autoencoder) -> None:
    both, swapped = noise_of(autoencoder, [4, 9], 5), noise_of(autoencoder, [9, 4], 5)
    for one, other, size in zip(both, swapped, (K, Z, Z), strict=True):
        assert one.shape == (10, size)
        assert torch.equal(one.view(2, 5, size), other.view(2, 5, size).flip(0))
    later = noise_of(autoencoder, [4, 9], 5, step=1)
    assert not any(torch.equal(one, other) for one, other in zip(both, later, strict=True))


def test_the_kinds_of_noise_are_not_of_one_stream(autoencoder: Autoencoder) -> None:
    config = dataclasses.replace(autoencoder.config, patch_size=Z)  # equal shapes, to be compared
    noise = AutoencoderNoise.draw(config, RandomStreams(1, torch.device("cpu")), 0, [0], 400)
    kinds = torch.stack([tensor.flatten() for tensor in noise])
    assert float((torch.corrcoef(kinds) - torch.eye(3)).abs().max()) < 0.08  # four standard errors


def test_both_ends_train_the_one_embedding(autoencoder: Autoencoder, ids_RK: Tensor) -> None:
    autoencoder.logits(torch.randn(1, Z)).sum().backward()
    from_output = autoencoder.encoder.embed_tokens.weight.grad
    assert from_output is not None and (from_output.abs().sum(dim=1) > 0).all()
    autoencoder.zero_grad()
    autoencoder.encoder(ids_RK)[0].sum().backward()
    from_input = autoencoder.encoder.embed_tokens.weight.grad
    assert from_input is not None
    assert set(from_input.abs().sum(dim=1).nonzero().flatten().tolist()) == set(ids_RK.flatten().tolist())
