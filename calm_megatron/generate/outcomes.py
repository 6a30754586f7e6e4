"""What a model draws next, as a black box: the patch of a CALM, or the token of a token-level model.

Sampling, temperatures and the loop of decode.py use no more of a model than this.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from calm_megatron.generate.draws import Draws, NoiseOfPrompts
from calm_megatron.generate.pool import DecodedPool, Pool, WholePool
from calm_megatron.model.ar_baseline import ArBaseline
from calm_megatron.model.attention import KVCache
from calm_megatron.model.calm import Calm
from calm_megatron.model.softmax import tokens_of


class Outcomes(Protocol):
    """The next outcome of each of R texts. Its randomness is keyed by prompt, step and attempt, never by place."""

    patch_size: int
    """K, tokens of an outcome."""
    device: torch.device

    def new_cache(self, batch_size: int, max_patches: int) -> KVCache:
        """An empty cache."""
        ...

    def hidden_states(self, ids_BT: Tensor, cache: KVCache) -> Tensor:
        """Read whole outcomes behind those in the cache; returns the hidden states (B, H) behind the last."""
        ...

    def draw(self, hidden_RH: Tensor, prompts: Sequence[int], step: int, attempt: int, count: int) -> Tensor:
        """Independent draws (R, count, K) of what comes behind each hidden state."""
        ...

    def pool(self, hidden_RH: Tensor, prompts: Sequence[int], step: int, attempt: int, count: int) -> Pool:
        """The same draws, to choose one of."""
        ...


class NextPatch:
    """Of a CALM: samples of the head, decoded.

    Args:
        model: the CALM.
        draws: source of the randomness.
        sampling_steps: of a head that takes several; none means those of its config.

    Raises:
        UserError: the head cannot sample in so many steps.
    """

    def __init__(self, model: Calm, draws: Draws, sampling_steps: int | None = None) -> None:
        model.head.demand_steps(sampling_steps)
        self._model, self._draws, self._sampling_steps = model, draws, sampling_steps
        self.patch_size = model.config.patch_size
        self.device = next(model.parameters()).device

    def new_cache(self, batch_size: int, max_patches: int) -> KVCache:
        """An empty cache."""
        return self._model.new_cache(batch_size, max_patches)

    def hidden_states(self, ids_BT: Tensor, cache: KVCache) -> Tensor:
        """Hidden states (B, H) behind the last patch."""
        return self._model.hidden_states(ids_BT, cache=cache)[:, -1]

    def draw(self, hidden_RH: Tensor, prompts: Sequence[int], step: int, attempt: int, count: int) -> Tensor:
        """Patches (R, count, K)."""
        return self._model.autoencoder.tokens(self._latents(hidden_RH, prompts, step, attempt, count))

    def pool(self, hidden_RH: Tensor, prompts: Sequence[int], step: int, attempt: int, count: int) -> DecodedPool:
        """The same, decoded as far as needed."""
        latent_RNZ = self._latents(hidden_RH, prompts, step, attempt, count)
        return DecodedPool(self._model.autoencoder, latent_RNZ)

    def _latents(self, hidden_RH: Tensor, prompts: Sequence[int], step: int, attempt: int, count: int) -> Tensor:
        """The head's samples (R, count, Z)."""
        noise = NoiseOfPrompts(self._draws, prompts, step, attempt)
        return self._model.head.sample(hidden_RH, noise, count, self._sampling_steps).transpose(0, 1)


class NextToken:
    """Of a token-level model: draws from its softmax.

    Args:
        model: the baseline.
        draws: source of the randomness.
        sharpness: 1/T by which the logits are multiplied; 1 leaves the model's own law.
    """

    patch_size = 1

    def __init__(self, model: ArBaseline, draws: Draws, sharpness: float = 1.0) -> None:
        self._model, self._draws, self._sharpness = model, draws, sharpness
        self.device = next(model.parameters()).device

    def new_cache(self, batch_size: int, max_patches: int) -> KVCache:
        """An empty cache."""
        return self._model.new_cache(batch_size, max_patches)

    def hidden_states(self, ids_BT: Tensor, cache: KVCache) -> Tensor:
        """Hidden states (B, H) behind the last token."""
        return self._model.hidden_states(ids_BT, cache=cache)[:, -1]

    def draw(self, hidden_RH: Tensor, prompts: Sequence[int], step: int, attempt: int, count: int) -> Tensor:
        """Tokens (R, count, 1)."""
        logits_RV = self._model.logits(hidden_RH).double() * self._sharpness
        uniform = [self._draws.token_uniform(prompt, step, attempt, count) for prompt in prompts]
        return tokens_of(logits_RV, torch.stack(uniform).to(logits_RV)).unsqueeze(-1)

    def pool(self, hidden_RH: Tensor, prompts: Sequence[int], step: int, attempt: int, count: int) -> WholePool:
        """The same."""
        return WholePool(self.draw(hidden_RH, prompts, step, attempt, count))
