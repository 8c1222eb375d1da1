"""What the notebook's printed code computes, beside what the notebook takes it for.

Captum hands its forward function all 50 points of the path as one batch, and the notebook's metric reads the first row
of the logits only. So of the 50 gradients one is left, that of the first Gauss-Legendre node, with its weight:
attribution patching, times a constant. An earlier version of its metric averaged over the rows instead, which gives
the integral divided by 50. Both then take means over positions and d_model where a sum has the unit of patching.
"""

import numpy as np
from transformer_lens.model_bridge import TransformerBridge

from igap.attribution import AttributionMap, attribution_patching
from igap.components import Site
from igap.inputs.prompts import PromptPair
from igap.vocabulary import BaselineKind

N_STEPS = 50

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(N_STEPS)
FIRST_NODE = float(_NODES[0] + 1) / 2
"""alpha of the first of 50 Gauss-Legendre nodes on [0, 1]: 0.00055."""
FIRST_WEIGHT = float(_WEIGHTS[0]) / 2
"""Its weight: 0.001454."""

DISPLAY_FACTOR = 1e5
"""What the notebook multiplies IG of heads by before it subtracts it from AP."""


def first_node(
    model: TransformerBridge, pair: PromptPair, site: Site, baseline: BaselineKind, *, at: float = FIRST_NODE
) -> AttributionMap:
    """The printed code's IG, summed over positions and d_model: `[layer, component]`, in logits.

    Its sum over a layer minus the layer's effect is the delta that the notebook prints. `at` is the alpha of the one
    node that counts.
    """
    return _scale(attribution_patching(model, pair, site, baseline=baseline, at=at), FIRST_WEIGHT)


def mean_over_steps(ig: AttributionMap) -> AttributionMap:
    """The IG of the earlier version, summed likewise: the integral divided by 50."""
    return _scale(ig, 1 / N_STEPS)


def average(attribution: AttributionMap, n_tokens: int, d_model: int) -> AttributionMap:
    """In the notebook's unit: the mean over positions, and of a head's output over d_model."""
    return _scale(attribution, 1 / (n_tokens * (d_model if attribution.site == "heads" else 1)))


def to_displayed_unit(attribution: AttributionMap, n_tokens: int, d_model: int) -> AttributionMap:
    """A map whose scores are the numbers that the notebook subtracts from AP's scores to find its outlier heads."""
    return _scale(average(attribution, n_tokens, d_model), DISPLAY_FACTOR * attribution.gap)


def _scale(attribution: AttributionMap, factor: float) -> AttributionMap:
    return AttributionMap(
        "ig", attribution.site, factor * attribution.effect, gap=attribution.gap, min_gap=attribution.min_gap
    )


def pad_pair(pair: PromptPair, pad: str, missing: int) -> PromptPair:
    """The pair as the notebook ran its second one: as one batch, the shorter prompt filled up on the right.

    `missing` is tokens of the corrupted prompt minus tokens of the clean one. The metric then reads a pad position.
    """
    return PromptPair(
        clean=pair.clean + pad * max(missing, 0),
        corrupted=pair.corrupted + pad * max(-missing, 0),
        answer=pair.answer,
        distractor=pair.distractor,
        min_gap=0.0,
        bos=pair.bos,
    )
