"""What the members of a set do together and apart: interactions of subsets, and Shapley values. Pure.

Numbers of subsets stand in the order of their bits: subset s holds member i where bit i of s is set, so that the first
is the empty one and the last the whole. Sources: Harsanyi 1963 (dividends), Shapley 1953, Castro et al. 2009 (random
orders).
"""

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy import stats

from igap.statistics.bootstrap import LEVEL


def members_of(subsets: Int64[np.ndarray, " subset"], n: int) -> Bool[np.ndarray, "subset member"]:
    """Which of n members each subset holds."""
    return (subsets[:, None] >> np.arange(n) & 1).astype(bool)


def interactions_of(effects: Float64[np.ndarray, "*rows subset"]) -> Float64[np.ndarray, "*rows subset"]:
    """What each subset does that no smaller one does: effect(S) = sum over subsets T of S of interaction(T).

    Of one member its effect alone; of two effect(c and d) - effect(c) - effect(d). In the unit of the effects, of all
    2^n subsets; that of the empty one is its effect, which should be 0.
    """
    interactions = effects.copy()
    for bit in range(effects.shape[-1].bit_length() - 1):
        halves = interactions.reshape(*effects.shape[:-1], -1, 2, 2**bit)
        halves[..., 1, :] -= halves[..., 0, :]
    return interactions


def shapley_values(interactions: Float64[np.ndarray, "*rows subset"]) -> Float64[np.ndarray, "*rows member"]:
    """Each member's mean contribution over all orders in which the members may be moved, one after the other.

    The interaction of a subset is shared equally among its members. The values sum to the effect of the whole.
    """
    n = interactions.shape[-1].bit_length() - 1
    held = members_of(np.arange(2**n), n)
    return np.asarray(interactions @ (held / np.maximum(1, held.sum(1, keepdims=True))))


def sample_orders(n: int, n_orders: int, seed: int) -> Int64[np.ndarray, "order place"]:
    """Random orders of n members; an order holds each member once."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(n) for _ in range(n_orders)])


def sampled_interval(
    contributions: Float64[np.ndarray, "order member"],
) -> tuple[Float64[np.ndarray, " member"], Float64[np.ndarray, " member"]]:
    """Ends of the 95% t interval of each member's mean contribution over random orders; NaN of fewer than two."""
    n = len(contributions)
    if n < 2:
        nothing = np.full(contributions.shape[1], np.nan)
        return nothing, nothing
    half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * contributions.std(0, ddof=1) / np.sqrt(n)
    mean = contributions.mean(0)
    return mean - half, mean + half
