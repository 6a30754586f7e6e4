"""Proof of a conversion: a checkpoint of ours and an official one give the same for the same input and noise.

Ours is run by our modules, the official one by the modelling file that travels with it, a baseline by the Llama of
transformers. Both run in fp32, with one weight in memory at a time. Weights that the official files hold in 16 bits are
compared as these bits have them.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from calm_megatron.checkpoint.load import find_checkpoint, saved_config, saved_state
from calm_megatron.checkpoint.meter import Meter, silent
from calm_megatron.checkpoint.official_config import CLASSES, SpecialTokens, official_config
from calm_megatron.checkpoint.official_state import OfficialModel, OfficialState
from calm_megatron.checkpoint.saved_state import SavedState
from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import ArConfig, AutoencoderConfig, CalmConfig, EnergyHeadConfig, ModelConfig
from calm_megatron.losses.energy_score import energy_score
from calm_megatron.losses.reconstruction import reconstruction_loss
from calm_megatron.model.ar_baseline import ArBaseline
from calm_megatron.model.autoencoder import Autoencoder, FrozenAutoencoder
from calm_megatron.model.calm import Calm
from calm_megatron.model.heads.denoiser import DenoisingHead
from calm_megatron.model.heads.kinds import build_head
from calm_megatron.model.noise import KeyedNoise
from calm_megatron.parallel.grid import one_rank
from calm_megatron.parallel.random_streams import RandomStreams
from calm_megatron.release.streamed import Read, streamed

TOLERANCE = 1e-5
"""Largest difference, relative to the largest number: the sums are taken in other orders."""
_TEXTS, _PATCHES = 2, 6
_STEPS = 3
"""Of a sample that is drawn in steps."""

Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Differences:
    """What both sides gave, compared."""

    largest: dict[str, float]
    """By output, relative to its largest number."""

    @property
    def equal(self) -> bool:
        """Whether they are within the tolerance; what is no number is not."""
        return all(value <= TOLERANCE for value in self.largest.values())

    def text(self) -> str:
        """A line for people."""
        found = ", ".join(f"{name} {value:.1e}" for name, value in self.largest.items())
        return f"largest differences: {found} (tolerance {TOLERANCE:.0e})"


def demand_equal(found: Differences, where: str) -> None:
    """Raise a `UserError` unless they are."""
    if not found.equal:
        raise UserError(
            f"the two sides do not give the same: {found.text()}", where, "nothing was published; report this fault"
        )


def modelling_file() -> Any:
    """The module that travels with a checkpoint.

    Raises:
        UserError: transformers is missing.
    """
    try:
        # By name, as transformers is no requirement of this package: only conversions run it.
        return importlib.import_module("calm_megatron.release.modeling_calm")
    except ImportError as error:
        raise UserError(
            f"the package transformers, which proves conversions, cannot be imported: {error}",
            "this environment",
            "pip install 'calm-megatron[hf]'",
        ) from None


@dataclass(frozen=True)
class Ours:
    """A model of ours in a checkpoint."""

    config: ModelConfig
    state: SavedState

    @staticmethod
    def of(run: Path) -> "Ours":
        """Of a run folder or checkpoint; a `UserError` tells of damage."""
        return Ours(saved_config(run).model, saved_state(find_checkpoint(run)))


def compare_outputs(
    model: Ours, autoencoder: Ours | None, official: OfficialModel, meter: Meter = silent
) -> Differences:
    """Run both sides.

    Args:
        model: ours.
        autoencoder: its autoencoder, if it is a CALM.
        official: the other one.
        meter: hears of the progress.
    """
    reading = _Reading(meter, official)
    with torch.no_grad(), one_rank():
        ours = _ours(reading, model, autoencoder)
        theirs = _theirs(reading, official)
    return Differences({name: _difference(ours[name], theirs[name]) for name in theirs})


def _difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp(min=1e-30))


class _Reading:
    """Gives weights of both sides by name, and tells how far it is."""

    def __init__(self, meter: Meter, official: OfficialModel) -> None:
        self._meter, self._done = meter, 0
        self.official = official
        self._total = 2 * sum(torch.Size(shape).numel() for shape in official.shapes.values())

    def ours(self, state: SavedState, like: OfficialState) -> Read:
        """Weights of ours, rounded as the official files have them."""

        def read(name: str) -> Tensor:
            weight = like.weights[name]
            parts = weight.parts(state.whole("weight", name), like.config)
            for theirs, part in parts.items():
                dtype = like.files.tensors[like.prefix + theirs].dtype
                if dtype not in (None, torch.float32):
                    part.copy_(part.to(dtype))
            return self._told(weight.of(list(parts.values()), like.config))

        return read

    def theirs(self, name: str) -> Tensor:
        """An official weight."""
        return self._told(self.official.files.read(name).float())

    def _told(self, weight: Tensor) -> Tensor:
        self._done += weight.numel()
        # What is used several times is read several times.
        self._meter("prove", min(self._done, self._total), self._total)
        return weight


def _ids(vocab_size: int, patch_size: int) -> Tensor:
    shape = (_TEXTS, _PATCHES * patch_size)
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(0))


def _noise() -> KeyedNoise:
    return KeyedNoise(RandomStreams(0, torch.device("cpu")), "proof", 0, range(_TEXTS), _PATCHES - 1)


def _ours(reading: _Reading, ours: Ours, autoencoder: Ours | None) -> Outputs:
    config, official = ours.config, reading.official
    read = reading.ours(ours.state, official.state)
    if isinstance(config, AutoencoderConfig):
        return _reconstruction(_our_autoencoder(config, read), config)
    if isinstance(config, ArConfig):
        return _our_baseline(config, read)
    assert autoencoder is not None and official.autoencoder is not None, "a CALM has an autoencoder"
    assert isinstance(autoencoder.config, AutoencoderConfig)
    inner = _our_autoencoder(autoencoder.config, reading.ours(autoencoder.state, official.autoencoder))
    with torch.device("meta"):
        model = Calm(config, FrozenAutoencoder(inner)).eval()
    streamed(model, read)
    noise, ids_BT = _noise(), _ids(config.vocab_size, config.patch_size)
    scored = model.score(ids_BT, noise)
    assert scored.terms is not None and scored.hidden_RH is not None
    latents_NRZ = scored.terms.samples_NRZ
    if latents_NRZ is None:
        latents_NRZ = model.draw(model.head, scored.hidden_RH, noise, 2, _STEPS)
    return {
        "hidden states": scored.hidden_RH,
        "latents": latents_NRZ,
        "logits": model.autoencoder.logits(latents_NRZ[0]),
        "loss": scored.terms.loss_R,
    }


def _our_autoencoder(config: AutoencoderConfig, read: Read) -> Autoencoder:
    with torch.device("meta"):
        module = Autoencoder(config).eval()
    streamed(module, read)
    return module


def _our_baseline(config: ArConfig, read: Read) -> Outputs:
    with torch.device("meta"):
        model = ArBaseline(config).eval()
    streamed(model, read)
    ids_BT = _ids(config.vocab_size, 1)
    hidden_BTH = model.hidden_states(ids_BT)
    return {
        "hidden states": hidden_BTH,
        "logits": model.logits(hidden_BTH.flatten(0, 1)).unflatten(0, ids_BT.shape),
        "loss": model.losses(ids_BT),
    }


def _theirs(reading: _Reading, official: OfficialModel) -> Outputs:
    config = official.config
    if isinstance(config, ArConfig):
        return _llama(reading, official, config)
    code = modelling_file()
    with torch.device("meta"):
        model = getattr(code, CLASSES[official.kind])(_official_config(code, official)).eval()
    streamed(model, reading.theirs)
    if isinstance(config, AutoencoderConfig):
        return _reconstruction(model, config)
    ids_BT, noise = _ids(config.vocab_size, config.patch_size), _noise()
    hidden_BPH, _ = model.hidden_states(ids_BT[:, : -config.patch_size])
    hidden_RH = hidden_BPH.flatten(0, 1)
    target_RK = ids_BT[:, config.patch_size :].reshape(-1, config.patch_size)
    mean_RZ, log_std_RZ = model.ae_model.encode(target_RK)
    if isinstance(config.head, EnergyHeadConfig):
        latents_NRZ = model.sample(hidden_RH, config.head.num_samples, noise)
        target_MRZ = noise.normal("target", config.head.num_target_samples, config.latent_size)
        loss_R = -energy_score(latents_NRZ, mean_RZ, log_std_RZ, target_MRZ, config.head.beta).score
    else:
        latents_NRZ = model.sample(hidden_RH, 2, noise, _STEPS)
        loss_R = _denoising_loss(config, model.generative_head.net, hidden_RH, lambda: (mean_RZ, log_std_RZ), noise)
    logits = model.ae_model.logits(latents_NRZ[0])
    return {"hidden states": hidden_RH, "latents": latents_NRZ, "logits": logits, "loss": loss_R}


def _denoising_loss(
    config: CalmConfig,
    net: Callable[[Tensor, Tensor, Tensor], Tensor],
    hidden_RH: Tensor,
    posterior: Callable[[], tuple[Tensor, Tensor]],
    noise: KeyedNoise,
) -> Tensor:
    """Our loss of what the other network says."""
    with torch.device("meta"):
        head = build_head(config)  # for its loss; its weights are not used
    assert isinstance(head, DenoisingHead)
    task = head.task(posterior, noise)
    said_NRo = net(task.noised_NRZ, task.time_NR, hidden_RH)
    return head.terms(said_NRo, task).mean(dim=0)[:, 0]


def _llama(reading: _Reading, official: OfficialModel, config: ArConfig) -> Outputs:
    modelling_file()  # says so, if transformers is not there
    llama: Any = importlib.import_module("transformers.models.llama.modeling_llama")
    given = {name: value for name, value in official.files.config.items() if value is not None}
    settings = importlib.import_module("transformers").LlamaConfig(**given)
    with torch.device("meta"):
        model = llama.LlamaForCausalLM(settings).eval()
    model.model.rotary_emb = llama.LlamaRotaryEmbedding(settings)  # its tables are no weights
    streamed(model, reading.theirs)
    ids_BT = _ids(config.vocab_size, 1)
    hidden_BTH = model.model(ids_BT, use_cache=False).last_hidden_state
    logits_BTV = model.lm_head(hidden_BTH)
    loss_BT = F.cross_entropy(logits_BTV[:, :-1].transpose(1, 2), ids_BT[:, 1:], reduction="none")
    return {"hidden states": hidden_BTH, "logits": logits_BTV, "loss": loss_BT.transpose(0, 1)}


def _reconstruction(module: Any, config: AutoencoderConfig) -> Outputs:
    """Of an autoencoder of either side: both have `encoder` and `logits`."""
    ids_RK = _ids(config.vocab_size, config.patch_size).view(-1, config.patch_size)
    mean_RZ, log_std_RZ = module.encoder(ids_RK)
    normal_RZ = torch.randn(mean_RZ.shape, generator=torch.Generator().manual_seed(1))
    logits_RKV = module.logits(mean_RZ + normal_RZ * log_std_RZ.exp())
    cross_entropy = F.cross_entropy(logits_RKV.flatten(0, 1).float(), ids_RK.flatten())
    terms = reconstruction_loss(
        cross_entropy, config.patch_size, mean_RZ, log_std_RZ, config.kl_weight, config.kl_clamp
    )
    return {"latents": mean_RZ, "log std": log_std_RZ, "logits": logits_RKV, "loss": terms.loss}


def _official_config(code: Any, official: OfficialModel) -> Any:
    """The config of its own, with that of the autoencoder within it."""
    if official.autoencoder is None:
        return code.AutoencoderConfig(**official.files.config)
    inner = official_config(official.autoencoder.config, SpecialTokens(), 0, "float32")
    return code.CalmConfig(**{**official.files.config, "ae_config": inner})
