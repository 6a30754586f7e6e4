"""A pool of samples of the next patch, of which no more is decoded than it takes to tell them apart.

A temperature asks how often each patch was drawn. One whose first tokens no other sample begins with was drawn once,
whatever its later tokens are, and these are decoded only if it is chosen. So the choice is that of the pool decoded as
a whole, number for number, while most of the work, the logits over the vocabulary, is saved where samples differ early.
"""

from typing import Final, Protocol

import torch
from torch import Tensor

from calm_megatron.model.autoencoder import FrozenAutoencoder

UNDECODED: Final = -1
"""Stands for the tokens behind the one that tells a patch from all others of its pool."""


class Pool(Protocol):
    """N samples of the next patch of each of R texts."""

    tokens_RNK: Tensor
    """Equal for equal patches and different for different ones, but not always decoded to the end."""

    def whole(self, index_R: Tensor) -> Tensor:
        """Patches (R, K), one of each pool, with all their tokens."""
        ...


class DecodedPool:
    """Of latents.

    Args:
        autoencoder: decodes them.
        latent_RNZ: the samples.
    """

    def __init__(self, autoencoder: FrozenAutoencoder, latent_RNZ: Tensor) -> None:
        rows, draws = latent_RNZ.shape[:2]
        self._autoencoder, self._draws = autoencoder, draws
        self._state_AH = autoencoder.patch_states(latent_RNZ.flatten(0, 1))
        device = latent_RNZ.device
        tokens_AK = torch.full((rows * draws, autoencoder.config.patch_size), UNDECODED, device=device)
        open_Q = torch.arange(rows * draws, device=device)
        group_Q = open_Q // draws
        for place in range(tokens_AK.shape[1]):
            token_Q = autoencoder.tokens_at(place, self._state_AH[open_Q])
            tokens_AK[open_Q, place] = token_Q
            # Groups of samples of one text that are equal so far; one that is alone in its group needs no more.
            folded_Q = group_Q * autoencoder.config.vocab_size + token_Q
            _, group_Q, count_G = torch.unique(folded_Q, return_inverse=True, return_counts=True)
            shared_Q = count_G[group_Q] > 1
            open_Q, group_Q = open_Q[shared_Q], group_Q[shared_Q]
        self.tokens_RNK = tokens_AK.view(rows, draws, -1)

    def whole(self, index_R: Tensor) -> Tensor:
        """Patches (R, K), one of each pool, with all their tokens."""
        place_R = torch.arange(len(index_R), device=index_R.device) * self._draws + index_R
        patch_RK = self.tokens_RNK.flatten(0, 1)[place_R]
        missing_RK = patch_RK == UNDECODED
        patch_RK.T[missing_RK.T] = self._autoencoder.tokens_where(missing_RK, self._state_AH[place_R])
        return patch_RK


class WholePool:
    """Of patches that are there."""

    def __init__(self, tokens_RNK: Tensor) -> None:
        self.tokens_RNK = tokens_RNK

    def whole(self, index_R: Tensor) -> Tensor:
        """Patches (R, K), one of each pool."""
        return self.tokens_RNK[torch.arange(len(index_R), device=index_R.device), index_R]
