"""The figures that the notebook published, all of GPT-2 small, and the two prompt pairs that they are about."""

from collections.abc import Mapping

FIRST = (
    "After John and Mary went to the store, Mary gave a bottle of milk to",
    "After John and Mary went to the store, John gave a bottle of milk to",
    " John",
    " Mary",
)
"""Clean, corrupted, answer, distractor."""

SECOND = (FIRST[0], "After the cat and the dog went to the store, Mary gave a bottle of milk to", *FIRST[2:])

CURVE_HEAD = "9.6"
"""The head whose output curve, and whose scores with the second pair, are quoted."""

OUTLIERS = ("7.3", "8.10", "9.6", "9.9", "10.6", "11.10")

OUTLIER_AP = (-0.10789, -0.14233, 0.00889, -0.11382, -0.07559, 0.21538)
"""Scores of OUTLIERS."""

ZERO_ABLATED = (0.6981, 0.7877, 0.8052, 0.8009, 0.7245, 0.9361)
"""Performance after zero ablation of each of OUTLIERS."""

FIGURES: Mapping[str, float] = {
    "clean_logit_diff": 4.276,
    "corrupted_logit_diff": -2.738,
    "pearson.zero.neurons": 0.2351,
    "pearson.zero.heads": 0.3064,
    "pearson.corrupted.neurons": 0.9852,
    "pearson.corrupted.heads": 0.9548,
    "jaccard.zero": 0.1111,
    "jaccard.corrupted": 0.875,
    "sd": 0.020343,
    "performance": 0.7864,
    "r.zero.difference": 0.8299,
    "r.zero.ig": 0.7297,
    "r.zero.ap": 0.8299,
    "r.mean.ig": 0.7868,
    "r.mean.ap": 0.8659,
    "second.clean_logit_diff": 1.458,
    "second.corrupted_logit_diff": -0.274,
    "second.curve_start": 1.4576,
    "second.curve_end": 1.1183,
    "second.ig": 3.3620e-08,
    "second.ap": -0.0456,
}

DELTAS: Mapping[tuple[str, str], tuple[float, ...]] = {
    ("zero", "heads"): (
        1.582, 0.078, 0.222, 0.711, 1.054, 1.131, 0.823, 1.176, 1.612, -0.938, -0.577, -0.185,
    ),
    ("zero", "neurons"): (
        6.293, 0.669, 1.656, 3.385, 0.949, 3.122, 2.462, 0.291, -0.881, 0.823, 0.057, -0.804,
    ),
    ("corrupted", "heads"): (
        -0.080, 0.056, -0.013, 0.257, 0.051, 0.368, 0.367, 1.327, 2.382, 1.457, -1.045, -1.988,
    ),
    ("corrupted", "neurons"): (
        5.368, -0.107, -0.119, 0.136, -0.088, 0.248, -0.041, 0.458, 0.121, 0.644, 0.452, 0.400,
    ),
}  # fmt: skip
"""Convergence deltas in logits, by baseline and site, layer by layer."""
