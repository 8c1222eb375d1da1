"""How near intervals of ranks and expected Jaccard indices come to the truth, on draws whose truth is known.

    python tests/benchmarks/stability.py [--draws 60]

64 components; means of few that stand out, Laplace, Student's t with 2 degrees of freedom, or noise alone; skewed
values that one prompt moves together. Coverage is the share of 95% intervals that hold the true rank; the index is of
the top 10, in truth, by halves (igap's), and by pairs of bootstrap samples and of the sample with one.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy import stats

from igap.statistics.bootstrap import resample_counts
from igap.statistics.stability import jaccard_with, rank_intervals, split_jaccard

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.ranked_draws import draw, truths

K, N = 10, 64


def index(x, y):
    a, b = (set(np.argsort(-np.abs(each))[:K]) for each in (x, y))
    return len(a & b) / len(a | b)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=60)
    n_draws = parser.parse_args().draws
    print(f"{'means':>8} {'pairs':>6} {'coverage':>9} {'index':>6} {'halves':>7} {'bootstrap':>10} {'with one':>9}")
    for kind in ("few", "laplace", "student", "noise"):
        for n in (8, 20, 100):
            rng, rows = np.random.default_rng(n), []
            for seed in range(n_draws):
                mean, deviation = truths(kind, rng)
                values = draw(mean, deviation, n, rng)
                low, high = rank_intervals(values, np.arange(N), seed=seed, n_resamples=500)
                rank = stats.rankdata(-np.abs(mean))
                (split,) = split_jaccard(values, np.array([K]), seed=seed)
                others = [draw(mean, deviation, n, rng).mean(0) for _ in range(20)]
                boot = resample_counts(n, seed=seed, n_resamples=40) @ values / n
                rows.append(
                    (
                        ((low <= rank) & (rank <= high)).mean(),
                        np.mean([index(x, y) for x, y in zip(others[::2], others[1::2], strict=True)]),
                        jaccard_with(n, split, n // 2, N, K),
                        np.mean([index(x, y) for x, y in zip(boot[::2], boot[1::2], strict=True)]),
                        np.mean([index(values.mean(0), each) for each in boot]),
                    )
                )
            coverage, *indices = np.mean(rows, axis=0)
            shown = " ".join(f"{x:>{w}.2f}" for x, w in zip(indices, (6, 7, 10, 9), strict=True))
            print(f"{kind:>8} {n:>6} {coverage:>9.3f} {shown}")


if __name__ == "__main__":
    main()
