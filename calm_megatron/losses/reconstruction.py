"""The autoencoder's training loss: cross-entropy of the tokens and a clipped KL divergence (CALM, section 3)."""

from typing import NamedTuple

from torch import Tensor


class ReconstructionTerms(NamedTuple):
    """Scalars of one micro-batch."""

    loss: Tensor
    """K * cross_entropy + kl_weight * kl."""
    cross_entropy: Tensor
    """Nats per token, mean over all tokens, padding included."""
    kl: Tensor
    """Clipped KL in nats: sum over the latent elements, mean over patches."""

    def named(self) -> dict[str, Tensor]:
        """As they are logged."""
        return {"loss": self.loss, "autoencoder/cross_entropy": self.cross_entropy, "autoencoder/kl": self.kl}


def clipped_kl(mean_RZ: Tensor, log_std_RZ: Tensor, clamp: float) -> Tensor:
    """KL of N(mean, std^2) from N(0, 1), at least `clamp` nats per element; summed over Z, averaged over rows.

    The clamp is the free-bits rule: an element below it contributes a constant and so gets no gradient.
    """
    kl_RZ = 0.5 * (mean_RZ.square() + (2 * log_std_RZ).exp() - 1 - 2 * log_std_RZ)
    return kl_RZ.clamp(min=clamp).sum(dim=-1).mean()


def reconstruction_loss(
    cross_entropy: Tensor, patch_size: int, mean_RZ: Tensor, log_std_RZ: Tensor, kl_weight: float, kl_clamp: float
) -> ReconstructionTerms:
    """The official loss, of the mean cross-entropy of the tokens and the posterior of their patches.

    Padding tokens count, as they do there, since the decoder must give them back too.
    """
    kl = clipped_kl(mean_RZ.float(), log_std_RZ.float(), kl_clamp)
    return ReconstructionTerms(patch_size * cross_entropy + kl_weight * kl, cross_entropy, kl)
