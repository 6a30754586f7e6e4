"""The autoencoder: K tokens to one latent vector and back (CALM, section 3; the official `Autoencoder`).

    ids (R, K) -> embed -> token layers -> squeeze -> patch layers -> norm -> mean, log_std (R, Z)
    latent (R, Z) -> expand -> patch layers -> K hidden states -> token layers -> norm -> logits (R, K, V)

R counts patches: there is no attention and nothing passes from one patch to another. Input and output embedding are one
matrix. Parameter names follow the official checkpoint.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
import xxhash
from torch import Tensor, nn

from calm_megatron.config.schema import AutoencoderConfig
from calm_megatron.losses.reconstruction import ReconstructionTerms, reconstruction_loss
from calm_megatron.model.norms import RMSNorm
from calm_megatron.parallel.random_streams import RandomStreams


class AutoencoderNoise(NamedTuple):
    """The randomness of one training step on R patches."""

    token_uniform_RK: Tensor
    """U[0, 1): tokens whose draw is not above the dropout rate become id 0."""
    latent_normal_RZ: Tensor
    """N(0, 1) of the posterior sample."""
    latent_uniform_RZ: Tensor
    """U[0, 1): latent elements whose draw is below the dropout rate are zeroed, the others scaled up."""

    @classmethod
    def draw(
        cls, config: AutoencoderConfig, streams: RandomStreams, step: int, sequences: Sequence[int], patches: int
    ) -> "AutoencoderNoise":
        """The noise of `patches` patches of each sequence, rows in the order (sequence, patch)."""
        K, Z = config.patch_size, config.latent_size
        return cls(
            token_uniform_RK=streams.uniform("token dropout", step, sequences, (patches, K)).flatten(0, 1),
            latent_normal_RZ=streams.normal("posterior sample", step, sequences, (patches, Z)).flatten(0, 1),
            latent_uniform_RZ=streams.uniform("latent dropout", step, sequences, (patches, Z)).flatten(0, 1),
        )


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, hidden_size: int, ffn_hidden_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, ffn_hidden_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, ffn_hidden_size, bias=False)
        self.down_proj = nn.Linear(ffn_hidden_size, hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., H) to (..., H)."""
        output: Tensor = self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))
        return output


class ResidualLayer(nn.Module):
    """x + mlp(norm(x))."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.mlp = GatedMLP(config.hidden_size, config.ffn_hidden_size)
        self.layernorm = RMSNorm(config.hidden_size, config.layernorm_epsilon)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., H) to (..., H)."""
        output: Tensor = hidden + self.mlp(self.layernorm(hidden))
        return output


class TiedEmbedding(nn.Embedding):
    """The one matrix of both ends: rows for ids, or logits for hidden states.

    Both uses are calls of this module, so that engines which gather a module's weights when it is called (ZeRO-3)
    see them.
    """

    def forward(self, ids_or_hidden: Tensor, to_logits: bool = False) -> Tensor:
        """Ids (...) to rows (..., H), or hidden states (..., H) to logits (..., V)."""
        if to_logits:
            return F.linear(ids_or_hidden, self.weight)
        return super().forward(ids_or_hidden)


class Encoder(nn.Module):
    """ids (R, K) -> posterior mean and log standard deviation, each (R, Z)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.embed_tokens = TiedEmbedding(config.vocab_size, hidden)
        self.encoder_layers = nn.ModuleList(ResidualLayer(config) for _ in range(config.num_encoder_layers))
        self.squeeze_layer = nn.Linear(config.patch_size * hidden, hidden)
        self.norm = RMSNorm(hidden, config.layernorm_epsilon)
        self.hidden_to_latent = nn.Linear(hidden, 2 * config.latent_size)

    def forward(self, ids_RK: Tensor, rounded: bool = False) -> tuple[Tensor, Tensor]:
        """`rounded` rounds the embedding to bf16, as the official encoder does in training, autocast or not."""
        hidden = self.embed_tokens(ids_RK)
        if rounded:
            hidden = hidden.to(torch.bfloat16)
        half = len(self.encoder_layers) // 2
        for layer in self.encoder_layers[:half]:
            hidden = layer(hidden)
        hidden = self.squeeze_layer(hidden.flatten(1))
        for layer in self.encoder_layers[half:]:
            hidden = layer(hidden)
        mean_RZ, log_std_RZ = self.hidden_to_latent(self.norm(hidden)).chunk(2, dim=-1)
        return mean_RZ, log_std_RZ


class Decoder(nn.Module):
    """latent (R, Z) -> hidden states of the K tokens (R, K, hidden), ready for the tied embedding."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.patch_size = config.patch_size
        self.latent_to_hidden = nn.Linear(config.latent_size, hidden)
        self.decoder_layers = nn.ModuleList(ResidualLayer(config) for _ in range(config.num_decoder_layers))
        self.expand_layer = nn.Linear(hidden, config.patch_size * hidden)
        self.norm = RMSNorm(hidden, config.layernorm_epsilon)

    def forward(self, latent_RZ: Tensor) -> Tensor:
        """Hidden states (R, K, H) of the tokens."""
        hidden = self.latent_to_hidden(latent_RZ)
        half = len(self.decoder_layers) // 2
        for layer in self.decoder_layers[:half]:
            hidden = layer(hidden)
        hidden = self.expand_layer(hidden).unflatten(-1, (self.patch_size, -1))
        for layer in self.decoder_layers[half:]:
            hidden = layer(hidden)
        output: Tensor = self.norm(hidden)
        return output


class Autoencoder(nn.Module):
    """Encoder, decoder and training loss."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def logits(self, latent_RZ: Tensor) -> Tensor:
        """Logits (R, K, V) of the tokens of each latent."""
        output: Tensor = self.encoder.embed_tokens(self.decoder(latent_RZ), to_logits=True)
        return output

    def forward(self, ids_RK: Tensor, noise: AutoencoderNoise) -> ReconstructionTerms:
        """Training loss of R patches. Dropped tokens become id 0, a real token, as in the official code."""
        rate = self.config.dropout
        kept_RK = ids_RK * (noise.token_uniform_RK > rate)
        mean_RZ, log_std_RZ = self.encoder(kept_RK, self.config.round_embedding_to_bf16)
        latent_RZ = mean_RZ + noise.latent_normal_RZ.to(mean_RZ) * log_std_RZ.exp()
        latent_RZ = latent_RZ * (noise.latent_uniform_RZ >= rate) / (1 - rate)
        return reconstruction_loss(
            self.logits(latent_RZ.to(mean_RZ)), ids_RK, mean_RZ, log_std_RZ, self.config.kl_weight, self.config.kl_clamp
        )


class FrozenAutoencoder:
    """A trained autoencoder that only serves: no module, so that no engine takes its weights for the model's.

    Always in evaluation mode and without gradients.
    """

    def __init__(self, autoencoder: Autoencoder) -> None:
        self.config = autoencoder.config
        self._module = autoencoder.eval().requires_grad_(False)

    def to(self, device: torch.device, dtype: torch.dtype) -> "FrozenAutoencoder":
        """Move the weights, in place."""
        self._module.to(device=device, dtype=dtype)
        return self

    @torch.no_grad()
    def encode(self, ids_RK: Tensor, for_training: bool = False) -> tuple[Tensor, Tensor]:
        """Posterior mean and log standard deviation, each (R, Z).

        `for_training` gives the targets of a training step: rounded like the official ones if the config asks for it.
        """
        mean_RZ, log_std_RZ = self._module.encoder(ids_RK, for_training and self.config.round_embedding_to_bf16)
        return mean_RZ, log_std_RZ

    @torch.no_grad()
    def logits(self, latent_RZ: Tensor) -> Tensor:
        """Logits (R, K, V)."""
        return self._module.logits(latent_RZ.to(self._module.decoder.latent_to_hidden.weight.dtype))

    @torch.no_grad()
    def tokens(self, latent: Tensor) -> Tensor:
        """Most probable tokens (..., K) of latents (..., Z), in chunks that bound the memory of the logits."""
        flat_RZ = latent.flatten(0, -2)
        chunks = [self.logits(chunk).argmax(dim=-1) for chunk in flat_RZ.split(2048)]
        return torch.cat(chunks).unflatten(0, latent.shape[:-1]) if chunks else flat_RZ.new_empty(0)

    def fingerprint(self) -> str:
        """XXH3 of names and weights, the same for the same autoencoder."""
        digest = xxhash.xxh3_128()
        for name, weight in sorted(self._module.named_parameters()):
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def state_dict(self) -> dict[str, Tensor]:
        """The weights by name."""
        return dict(self._module.state_dict())
