"""Recorded figures of the official code: its noise as our heads ask for it, and its gradients beside ours."""

from pathlib import Path

from torch import Tensor

from calm_megatron.checkpoint.official_state import demand_sound, official_autoencoder, open_official
from calm_megatron.checkpoint.weights import put
from calm_megatron.config.schema import CalmConfig
from calm_megatron.model import names
from calm_megatron.model.autoencoder import FrozenAutoencoder
from calm_megatron.model.calm import Calm
from calm_megatron.model.noise import GivenNoise


def load_official_calm(folder: Path) -> Calm:
    """An official CALM with any of its heads, in fp32; needs process groups."""
    official = open_official(folder)
    demand_sound(official)
    assert isinstance(official.config, CalmConfig)
    model = Calm(official.config, FrozenAutoencoder(official_autoencoder(official)))
    put({name: official.state.whole("weight", name) for name in official.state.names()}, model)
    return model


def relative(ours: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest number."""
    assert ours.shape == expected.shape
    return float((ours.detach().double() - expected.double()).abs().max() / expected.double().abs().max())


def energy_noise(head_NRn: Tensor, target_MRZ: Tensor) -> GivenNoise:
    """Noise of an energy head's loss, of which the first is recorded around zero."""
    return GivenNoise({"head": head_NRn + 0.5, "target": target_MRZ})


def loss_noise(tensors: dict[str, Tensor], part: str = "train") -> GivenNoise:
    """Noise of the training or of the evaluation loss (`part` is train or eval), for the head that was recorded."""
    if "head_noise" in tensors:
        return energy_noise(tensors["head_noise" if part == "train" else "eval_head_noise"], tensors["energy_eps"])
    target_NRZ = tensors[f"{part}_target_eps"]
    times = tensors[f"{part}_t"].view(*target_NRZ.shape[:2], 1)
    if f"{part}_x0" in tensors:
        return GivenNoise({"target": target_NRZ, "time": times, "source": tensors[f"{part}_x0"].view_as(target_NRZ)})
    noise_NRZ = tensors[f"{part}_noise"].view_as(target_NRZ)
    return GivenNoise({"target": target_NRZ, "time": (times + 0.5) / 1000, "noise": noise_NRZ})


def sampling_noise(tensors: dict[str, Tensor]) -> GivenNoise:
    """Noise of the two samples of a diffusion or flow head; steps are counted towards the sample."""
    shape = tensors["sample_latents"].shape
    steps = tensors.get("sample_step_noise", [])
    by_step = {f"step {len(steps) - 1 - place}": noise.view(shape) for place, noise in enumerate(steps)}
    return GivenNoise({"start": tensors["sample_init"].view(shape), **by_step})


def official_gradients(model: Calm) -> dict[str, Tensor]:
    """The gradients under the official names, cut as the official weights are."""
    gradients = {}
    for name, weight in model.named_parameters():
        entry, officials = names.entry_of(name)
        assert weight.grad is not None, name
        gradients |= dict(zip(officials, names.split(weight.grad, entry.join, model.config), strict=True))
    return gradients
