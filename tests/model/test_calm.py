"""The whole model: its two inputs, the pad token's row, what fits together, and training in bf16."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import OptimizerConfig
from calm_megatron.losses.energy_score import energy_score
from calm_megatron.model.autoencoder import Autoencoder, FrozenAutoencoder
from calm_megatron.model.calm import Calm, check_autoencoder
from calm_megatron.model.initialise import initialise
from calm_megatron.model.noise import KeyedNoise, Noise, NoiseOfRows
from calm_megatron.parallel.random_streams import RandomStreams
from calm_megatron.train.optimizer import build_optimizer

Build = Callable[..., Calm]
K = 4


def noise_of(model: Calm, ids_BT: Tensor, sequences: list[int] | None = None) -> Noise:
    streams = RandomStreams(1, torch.device("cpu"))
    sequences = sequences or list(range(len(ids_BT)))
    return KeyedNoise(streams, "training", 0, sequences, ids_BT.shape[1] // K - 1)


def test_the_loss_is_the_mean_over_all_predicted_patches(
    build: Build, autoencoder: Autoencoder, ids_BT: Tensor
) -> None:
    model = build()
    noise = noise_of(model, ids_BT)
    hidden_BPH = model.hidden_states(ids_BT)
    scores = []
    for b in range(2):
        for p in range(1, 8):
            row = b * 7 + p - 1
            mean_1Z, log_std_1Z = autoencoder.encoder(ids_BT[b : b + 1, p * K : (p + 1) * K])
            own = NoiseOfRows(noise, torch.tensor([row]))
            samples_N1Z = model.head.sample(hidden_BPH[b, p - 1][None], own, 4)
            terms = energy_score(samples_N1Z, mean_1Z, log_std_1Z, own.normal("target", 10, 6))
            scores.append(terms.score)
    assert float(model(ids_BT, noise).loss) == pytest.approx(-float(torch.cat(scores).mean()), rel=1e-5)


def test_noise_belongs_to_the_sequence_not_to_the_batch(build: Build, ids_BT: Tensor) -> None:
    model = build()
    both = model.score(ids_BT, noise_of(model, ids_BT, [7, 3])).terms
    swapped = model.score(ids_BT.flip(0), noise_of(model, ids_BT, [3, 7])).terms
    torch.testing.assert_close(both.loss_R.view(2, 7), swapped.loss_R.view(2, 7).flip(0))


def test_noise_has_the_laws_that_the_head_and_the_targets_expect(build: Build, ids_BT: Tensor) -> None:
    noise = noise_of(build(), ids_BT)
    head_NRn, target_MRZ = build().head.noise(noise, 4), noise.normal("target", 10, 6)
    assert head_NRn.shape == (4, 14, 8)
    assert target_MRZ.shape == (10, 14, 6)
    assert -0.5 <= float(head_NRn.min()) < -0.4 < 0.4 < float(head_NRn.max()) < 0.5
    assert float(target_MRZ.std()) == pytest.approx(1.0, abs=0.1)


def test_patches_left_out_do_not_count(build: Build, ids_BT: Tensor) -> None:
    model = build()
    noise = noise_of(model, ids_BT)
    kept_BP = torch.rand(2, 8, generator=torch.Generator().manual_seed(1)) > 0.4
    kept_R = kept_BP[:, 1:].flatten()
    every = model.score(ids_BT, noise).terms
    kept = model.score(ids_BT, NoiseOfRows(noise, kept_R.nonzero().squeeze(1)), kept_BP=kept_BP).terms
    torch.testing.assert_close(kept.loss_R, every.loss_R[kept_R])


@pytest.mark.parametrize(
    ("name", "value"), [("patch_size", 2), ("latent_size", 7), ("vocab_size", 24)], ids=lambda word: str(word)
)
def test_an_autoencoder_that_does_not_fit_is_refused(
    build: Build, autoencoder: Autoencoder, name: str, value: int
) -> None:
    model = build()
    config = dataclasses.replace(model.config, **{name: value})
    with pytest.raises(UserError) as caught:
        Calm(config, FrozenAutoencoder(autoencoder))
    own = getattr(autoencoder.config, name)
    assert f"model.{name} = {value}, but the autoencoder has {own}" in str(caught.value)
    assert "model.autoencoder = in memory" in str(caught.value)


def test_all_mismatches_are_told_at_once(build: Build, autoencoder: Autoencoder) -> None:
    config = dataclasses.replace(build().config, patch_size=2, latent_size=7)
    with pytest.raises(UserError, match=r"patch_size = 2(.|\n)*latent_size = 7"):
        check_autoencoder(config, autoencoder.config)


def test_latents_as_input_are_the_means_of_the_frozen_encoder(
    build: Build, autoencoder: Autoencoder, ids_BT: Tensor
) -> None:
    model = build(input="latents")
    assert not any("embedding.tokens" in name for name, _ in model.named_parameters())
    mean_RZ, _ = autoencoder.encoder(ids_BT.view(-1, K))
    expected = model.patch_embedding.compression(mean_RZ.view(2, 8, 6).transpose(0, 1))
    seen: list[Tensor] = []
    handle = model.patch_embedding.register_forward_hook(lambda module, given, output: seen.append(output))
    before = model.hidden_states(ids_BT)
    handle.remove()
    torch.testing.assert_close(seen[0], expected)
    with torch.no_grad():
        autoencoder.encoder.hidden_to_latent.bias.add_(1.0)
    assert not torch.allclose(model.hidden_states(ids_BT), before)


def test_latents_as_input_train_all_but_the_autoencoder(build: Build, autoencoder: Autoencoder, ids_BT: Tensor) -> None:
    model = build(input="latents").train()
    model(ids_BT, noise_of(model, ids_BT)).loss.backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in model.parameters())
    assert all(weight.grad is None for weight in autoencoder.parameters())


def test_the_autoencoder_is_no_part_of_the_model(build: Build, ids_BT: Tensor) -> None:
    model = build()
    frozen = {tensor.data_ptr() for tensor in model.autoencoder.state_dict().values()}
    assert not frozen & {weight.data_ptr() for weight in model.parameters()}
    mean_RZ, _ = model.autoencoder.encode(ids_BT.view(-1, K))
    assert not mean_RZ.requires_grad


def test_the_pad_row_starts_at_zero_and_stays_there(build: Build, ids_BT: Tensor) -> None:
    model = build(pad_token_id=22)
    model.initialise(seed=1)
    assert model.patch_embedding.embedding is not None
    weight = model.patch_embedding.embedding.tokens.weight
    assert weight[22].abs().max() == 0 and weight[:22].abs().min(dim=1).values.max() > 0
    # The head's last layer starts at zero too and would keep every gradient from the embedding.
    with torch.no_grad():
        model.head.output.linear_out.weight.normal_()
    ids_BT = ids_BT.clone()
    ids_BT[:, [1, 9]] = 22
    before = weight.detach().clone()
    optimizer = build_optimizer(model, OptimizerConfig(lr=1e-2))
    for _ in range(3):
        optimizer.zero_grad()
        model(ids_BT, noise_of(model, ids_BT)).loss.backward()
        optimizer.step()
    assert weight[22].abs().max() == 0
    assert not torch.equal(weight[ids_BT[0, 0]], before[ids_BT[0, 0]])


def test_without_a_pad_token_every_row_learns(build: Build, ids_BT: Tensor) -> None:
    model = build(pad_token_id=None)
    ids_BT = ids_BT.clone()
    ids_BT[:, 1] = 22
    model(ids_BT, noise_of(model, ids_BT)).loss.backward()
    assert model.patch_embedding.embedding is not None
    assert model.patch_embedding.embedding.tokens.weight.grad[22].abs().max() > 0


def test_an_untrained_model_gives_one_point(build: Build, ids_BT: Tensor) -> None:
    model = build()
    model.initialise(seed=1)
    terms = model.score(ids_BT, noise_of(model, ids_BT)).terms
    assert terms.samples_NRZ.abs().max() == 0
    model(ids_BT, noise_of(model, ids_BT)).loss.backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert model.head.output.linear_out.weight.grad is not None
    assert model.head.output.linear_out.weight.grad.abs().max() > 0


def test_bf16_follows_fp32(build: Build, autoencoder: Autoencoder, ids_BT: Tensor) -> None:
    with torch.no_grad():
        for weight in autoencoder.parameters():
            weight.copy_(weight.bfloat16())
    exact = build()
    for weight in exact.parameters():
        weight.data = weight.data.bfloat16().float()
    noise = noise_of(exact, ids_BT)
    expected = exact(ids_BT, noise).loss
    rough = build(dtype=torch.bfloat16).train()
    loss = rough(ids_BT, noise).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(expected), rel=0.02)
    for weight in rough.parameters():
        assert weight.dtype == torch.bfloat16
        assert weight.grad is not None and weight.grad.isfinite().all()


def test_frozen_tokens_come_in_the_shape_of_the_latents(autoencoder: Autoencoder) -> None:
    initialise(autoencoder, seed=3, std=0.3)
    frozen = FrozenAutoencoder(autoencoder)
    latent = torch.randn(3, 1000, 6)  # more than one chunk of logits
    tokens = frozen.tokens(latent)
    assert tokens.shape == (3, 1000, K)
    assert torch.equal(tokens[2, -1], frozen.logits(latent[2, -1:])[0].argmax(dim=-1))
    assert torch.equal(tokens[0, 0], frozen.logits(latent[0, :1])[0].argmax(dim=-1))
