"""Effects of components over pairs whose true ranking is known."""

import numpy as np


def truths(kind, rng, n_components=64):
    """Mean and standard deviation over pairs of each component; `noise`: means are next to nothing."""
    if kind == "few":  # ten that stand out
        mean = np.r_[np.linspace(3, 1, 10) * rng.choice([-1, 1], 10), 0.1 * rng.standard_normal(n_components - 10)]
    elif kind == "noise":
        mean = 1e-3 * rng.standard_normal(n_components)
    else:
        mean = 0.3 * rng.laplace(size=n_components) if kind == "laplace" else 0.1 * rng.standard_t(2, n_components)
    return mean, 0.3 * np.exp(0.3 * rng.standard_normal(n_components)) + 0.5 * np.abs(mean)


def draw(mean, deviation, n, rng):
    """Values of n pairs: skewed, and correlated between components, as one prompt moves them all."""
    own = rng.gamma(4, 0.5, size=(n, len(mean))) - 2
    return mean + deviation * (0.9 * own + 0.435 * np.sign(mean) * rng.standard_normal((n, 1)))
