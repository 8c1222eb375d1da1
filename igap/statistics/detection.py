"""How a ranking finds the components that matter. Pure functions of arrays.

The definitions are those of scikit-learn's `roc_auc_score` and `average_precision_score`.
"""

import numpy as np
from jaxtyping import Bool, Float64
from scipy.stats import rankdata


def roc_area(scores: Float64[np.ndarray, " n"], matters: Bool[np.ndarray, " n"]) -> float:
    """The chance that one that matters has the larger score than one that does not, [0, 1]; a tie counts a half.

    NaN where all or none matter.
    """
    n_positive = int(matters.sum())
    n_negative = matters.size - n_positive
    if not n_positive or not n_negative:
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[matters].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def average_precision(scores: Float64[np.ndarray, " n"], matters: Bool[np.ndarray, " n"]) -> float:
    """Precision at each score as a threshold, weighted by the recall that the threshold adds, [0, 1].

    Equal scores share a threshold. NaN where none matters.
    """
    if not matters.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    sorted_scores, hits = scores[order], np.cumsum(matters[order])
    last = np.append(sorted_scores[1:] != sorted_scores[:-1], True)  # of those with an equal score
    precision, recall = (hits / np.arange(1, hits.size + 1))[last], hits[last] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def find_missed(scores: Float64[np.ndarray, " n"], matters: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Those that matter and are not among the k largest scores, where k matter.

    One that shares its score with others counts as the last of them: which of them comes first would be an accident.
    """
    below = rankdata(-scores, method="max") > matters.sum()
    return np.asarray(matters & below)
