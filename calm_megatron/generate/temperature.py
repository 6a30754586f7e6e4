"""Temperature for a model that can be sampled but has no logits: the batch approximation.

Sampling at temperature T draws from P(x)^s / Z with s = 1/T. For a whole s = n, P(x)^n is the probability that n
independent draws all give x, so one could draw n at a time until they agree; exact.py does that, and also what a
fraction takes. The batch approximation looks at a pool of N draws at once: an outcome seen c times could be the common
value of comb(c, n) groups of n draws, and is chosen in proportion to that number (arXiv 2510.27688, the batch
approximation of its likelihood-free temperature sampling). As N grows, comb(c, n) / N^n tends to P(x)^n / n!, so the
choice tends to the exact law. When nothing was seen n times, n - 1 takes its place, and so on down to 1: small pools
give a temperature that is a little too high, never an error.

For s = n + a with a fraction a (the paper has whole ones only), take each of those comb(c, n) groups, let the other
N - n draws come in a random order, and give them to the Bernoulli factory of exact.py. Of these, m = c - n are heads.
The factory survives i tails with probability prod_{j <= i} (1 - a/j) = comb(i - a, i), and i tails come before the
first heads with probability comb(N - n - 1 - i, m - 1) / comb(N - n, m). By Vandermonde's convolution the products add
up to

    comb(N - n - a, N - n - m) / comb(N - n, m)  =  m! / Gamma(m + 1 - a)  *  (what N, n and a alone decide),

so an outcome has the weight comb(c, n) m! / Gamma(m + 1 - a): up to a common factor the binomial coefficient of c over
s, as the Gamma function continues it. It grows like c^s, so here, too, the choice tends to the exact law. (At m = 0 the
formula counts a factory that is still undecided at the end of the pool as one that accepts.)

An outcome is a patch: a tuple of K tokens.
"""

import torch
from torch import Tensor

from calm_megatron.generate.options import Exponent


def _same_outcome(pool_BNK: Tensor) -> tuple[Tensor, Tensor]:
    """Count equal outcomes in each row.

    Returns:
        count_BN: how often the outcome at this place occurs in its row.
        is_first_BN: whether this is its first occurrence.
    """
    rows, draws, patch_size = pool_BNK.shape
    places = rows * draws
    # Each token is folded into one number per draw, which `unique` makes small again (at most B * N): exact for any K.
    group_A = torch.arange(rows, device=pool_BNK.device).repeat_interleave(draws)
    lowest = pool_BNK.min()
    spread = pool_BNK.max() - lowest + 1
    for k in range(patch_size):
        folded_A = group_A * spread + (pool_BNK[:, :, k].reshape(places) - lowest)
        _, group_A = torch.unique(folded_A, return_inverse=True)
    count_G = torch.bincount(group_A)
    place_A = torch.arange(places, device=pool_BNK.device)
    first_G = torch.full_like(count_G, places).scatter_reduce_(0, group_A, place_A, reduce="amin")
    return count_G[group_A].view(rows, draws), (first_G[group_A] == place_A).view(rows, draws)


def combinations(count: Tensor, order: Tensor, largest_order: int) -> Tensor:
    """Return comb(count, order) elementwise in float64.

    After each factor the value is a binomial coefficient again, so results are exact while the product before the
    division, at most `order` times the result, stays below 2^53. Larger ones (a count of 500 and order 10 give 2.5e20)
    carry a relative error of some 1e-15, which no choice between weights can show.

    Args:
        count: non-negative whole numbers.
        order: whole numbers from 0 to `largest_order`, broadcastable to `count`.
        largest_order: number of factors to go through.
    """
    result = torch.ones(count.shape, dtype=torch.float64, device=count.device)
    for i in range(largest_order):
        result = torch.where(i < order, result * (count - i).clamp(min=0) / (i + 1), result)
    return result


def _fraction_factor(extra: Tensor, fraction: float) -> Tensor:
    """Return m! / Gamma(m + 1 - a) elementwise in float64, for `extra` m >= 0 and `fraction` a; 1 for a = 0."""
    m = extra.double()
    return (torch.lgamma(m + 1.0) - torch.lgamma(m + 1.0 - fraction)).exp()


def temperature_weights(pool_BNK: Tensor, exponent: Exponent, usable_BN: Tensor | None = None) -> Tensor:
    """Return the weight of each draw of the pool at the temperature of this exponent.

    An outcome that occurs several times has its whole weight at its first occurrence and zero at the others, so the
    places with a positive weight are the candidates in the order of first appearance.

    Args:
        pool_BNK: tokens of N draws for each of B rows.
        exponent: s = n + a of T = 1/s.
        usable_BN: draws that take part; none means all. A row without one has no weight at all.

    Returns:
        weights_BN in float64, comb(count, n) times the factor of the fraction; in a row that holds nothing n times,
        comb(count, n') with the largest n' < n for which it has a candidate.
    """
    if usable_BN is not None:
        # An extra token tells the draws that take part from the others, so that they are never counted together.
        pool_BNK = torch.cat([pool_BNK, usable_BN.unsqueeze(-1).to(pool_BNK)], dim=-1)
    count_BN, candidate_BN = _same_outcome(pool_BNK)
    if usable_BN is not None:
        candidate_BN = candidate_BN & usable_BN
    seen_BN = count_BN * candidate_BN
    order_B1 = seen_BN.amax(dim=1, keepdim=True).clamp(max=exponent.whole)
    weights_BN = combinations(seen_BN, order_B1, exponent.whole) * (seen_BN > 0)
    if exponent.fraction:
        # In a row that falls back, all candidates occur equally often: the factor is one for all and changes nothing.
        weights_BN = weights_BN * _fraction_factor((seen_BN - order_B1).clamp(min=0), exponent.fraction)
    return weights_BN


def select_index(weights_BN: Tensor, uniform_B: Tensor) -> Tensor:
    """Return index_B, for each row a place drawn in proportion to its weight, by inverting the cumulative sum.

    Args:
        weights_BN: float64 weights, at least one positive in each row.
        uniform_B: float64 numbers in [0, 1), the randomness of the choice.
    """
    cumulative_BN = weights_BN.cumsum(dim=1)
    aim_B1 = uniform_B.to(cumulative_BN).unsqueeze(1) * cumulative_BN[:, -1:]
    index_B = torch.searchsorted(cumulative_BN, aim_B1, right=True).squeeze(1)
    # Rounding may lift the aim onto the total, behind the last positive weight.
    last_B = (cumulative_BN < cumulative_BN[:, -1:]).sum(dim=1)
    return torch.minimum(index_B, last_B)


def choose(pool_BNK: Tensor, exponent: Exponent, uniform_B: Tensor, usable_BN: Tensor | None = None) -> Tensor:
    """Choose one draw a row at the temperature of this exponent.

    At temperature 1 it is the first draw that takes part, which needs no pool and no randomness of its own.

    Args:
        pool_BNK: tokens of N draws for each of B rows; whatever stands for tokens, as long as equal draws are equal.
        exponent: 1/T.
        uniform_B: numbers in [0, 1) that make the choice.
        usable_BN: draws that take part, at least one in each row; none means all.

    Returns:
        index_B, the place of the draw among the N.
    """
    if not exponent.is_one:
        return select_index(temperature_weights(pool_BNK, exponent, usable_BN), uniform_B)
    if usable_BN is not None:
        return usable_BN.long().argmax(dim=1)
    return torch.zeros(len(pool_BNK), dtype=torch.int64, device=pool_BNK.device)


def select(pool_BNK: Tensor, exponent: Exponent, uniform_B: Tensor, usable_BN: Tensor | None = None) -> Tensor:
    """The tokens patch_BK of the draw chosen in each row; arguments as of `choose`."""
    index_B = choose(pool_BNK, exponent, uniform_B, usable_BN)
    return pool_BNK[torch.arange(len(pool_BNK), device=pool_BNK.device), index_B]
