"""The autoencoder: K tokens to one latent vector and back (CALM, section 3; the official `Autoencoder`).

    ids (R, K) -> embed -> token layers -> squeeze -> patch layers -> norm -> mean, log_std (R, Z)
    latent (R, Z) -> expand -> patch layers -> K hidden states -> token layers -> norm -> logits (R, K, V)

R counts patches: there is no attention and nothing passes from one patch to another. Input and output embedding are one
matrix. Parameter names follow the official checkpoint.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
import xxhash
from torch import Tensor, nn

from calm_megatron.config.schema import AutoencoderConfig
from calm_megatron.losses.reconstruction import ReconstructionTerms, reconstruction_loss
from calm_megatron.losses.vocabulary import linear_argmax, linear_cross_entropy
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


Use = Literal["rows", "logits", "tokens", "loss"]
"""What the tied embedding gives."""


class TiedEmbedding(nn.Embedding):
    """The one matrix of both ends: rows for ids; logits, or what is asked of them, for hidden states.

    All uses are calls of this module, so that engines which gather a module's weights when it is called (ZeRO-3)
    see them.
    """

    def forward(self, ids_or_hidden: Tensor, use: Use = "rows", ids_S: Tensor | None = None) -> Tensor:
        """What was asked for.

        Args:
            ids_or_hidden: ids (...) for rows (..., H), or hidden states (S, H): for logits (S, V), for the tokens (S,)
                with the largest ones, or for the mean cross-entropy of given tokens.
            use: which of these.
            ids_S: the given tokens.
        """
        if use == "logits":
            return F.linear(ids_or_hidden, self.weight)
        if use == "tokens":
            return linear_argmax(ids_or_hidden, self.weight)
        if use == "loss":
            assert ids_S is not None
            return linear_cross_entropy(ids_or_hidden, self.weight, ids_S)
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
        hidden_RKH = self.expand_layer(self.of_patches(latent_RZ)).unflatten(-1, (self.patch_size, -1))
        return self._of_expanded(hidden_RKH)

    def of_patches(self, latent_RZ: Tensor) -> Tensor:
        """The first half: hidden states (R, H) of the patches, of which those of the tokens are made."""
        hidden_RH: Tensor = self.latent_to_hidden(latent_RZ)
        for layer in self.decoder_layers[: len(self.decoder_layers) // 2]:
            hidden_RH = layer(hidden_RH)
        return hidden_RH

    def of_tokens(self, hidden_RH: Tensor, place: int) -> Tensor:
        """The second half for one token of each patch, at this place: (R, H) to (R, H)."""
        weight_KHH = self.expand_layer.weight.unflatten(0, (self.patch_size, -1))
        bias_KH = self.expand_layer.bias.unflatten(0, (self.patch_size, -1))
        return self._of_expanded(F.linear(hidden_RH, weight_KHH[place], bias_KH[place]))

    def _of_expanded(self, hidden: Tensor) -> Tensor:
        for layer in self.decoder_layers[len(self.decoder_layers) // 2 :]:
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
        output: Tensor = self.encoder.embed_tokens(self.decoder(latent_RZ), "logits")
        return output

    def cross_entropy(self, latent_RZ: Tensor, ids_RK: Tensor) -> Tensor:
        """Mean cross-entropy of the tokens, in nats; their logits are never all in memory."""
        output: Tensor = self.encoder.embed_tokens(self.decoder(latent_RZ).flatten(0, 1), "loss", ids_RK.flatten())
        return output

    @torch.no_grad()
    def tokens(self, latent_RZ: Tensor) -> Tensor:
        """Most probable tokens (R, K) of each latent; their logits are never all in memory."""
        output: Tensor = self.encoder.embed_tokens(self.decoder(latent_RZ).flatten(0, 1), "tokens")
        return output.view(-1, self.config.patch_size)

    def forward(self, ids_RK: Tensor, noise: AutoencoderNoise) -> ReconstructionTerms:
        """Training loss of R patches. Dropped tokens become id 0, a real token, as in the official code."""
        rate = self.config.dropout
        kept_RK = ids_RK * (noise.token_uniform_RK > rate)
        mean_RZ, log_std_RZ = self.encoder(kept_RK, self.config.round_embedding_to_bf16)
        latent_RZ = mean_RZ + noise.latent_normal_RZ.to(mean_RZ) * log_std_RZ.exp()
        latent_RZ = latent_RZ * (noise.latent_uniform_RZ >= rate) / (1 - rate)
        cross_entropy = self.cross_entropy(latent_RZ.to(mean_RZ), ids_RK)
        config = self.config
        return reconstruction_loss(
            cross_entropy, config.patch_size, mean_RZ, log_std_RZ, config.kl_weight, config.kl_clamp
        )


_CHUNK_PATCHES = 2048
"""Latents that the frozen decoder takes at once."""


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
        return self._module.logits(self._as_weights(latent_RZ))

    @torch.no_grad()
    def tokens(self, latent: Tensor) -> Tensor:
        """Most probable tokens (..., K) of latents (..., Z), in chunks that bound the memory."""
        chunks = [self._module.tokens(self._as_weights(chunk)) for chunk in latent.flatten(0, -2).split(_CHUNK_PATCHES)]
        return torch.cat(chunks).view(*latent.shape[:-1], self.config.patch_size)

    @torch.no_grad()
    def patch_states(self, latent_RZ: Tensor) -> Tensor:
        """What `tokens_at` begins with: hidden states (R, H) of the patches of these latents."""
        chunks = [self._module.decoder.of_patches(self._as_weights(chunk)) for chunk in latent_RZ.split(_CHUNK_PATCHES)]
        return torch.cat(chunks)

    @torch.no_grad()
    def tokens_at(self, place: int, state_RH: Tensor) -> Tensor:
        """Most probable tokens (R,) at one place of K, of patches whose states are given."""
        ids: Tensor = self._module.encoder.embed_tokens(self._module.decoder.of_tokens(state_RH, place), "tokens")
        return ids

    @torch.no_grad()
    def tokens_where(self, wanted_RK: Tensor, state_RH: Tensor) -> Tensor:
        """Most probable tokens at the wanted places of patches, place after place, by one look at the vocabulary."""
        decoder = self._module.decoder
        hidden = [decoder.of_tokens(state_RH[wanted_R], place) for place, wanted_R in enumerate(wanted_RK.unbind(1))]
        ids: Tensor = self._module.encoder.embed_tokens(torch.cat(hidden), "tokens")
        return ids

    def _as_weights(self, latent: Tensor) -> Tensor:
        """In the type of the weights."""
        return latent.to(self._module.decoder.latent_to_hidden.weight.dtype)

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
