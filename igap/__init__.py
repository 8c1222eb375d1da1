"""igap: Integrated Gradients against activation patching, for attention heads and MLP neurons of transformers.

Every example in a docstring goes on from here, with this `model` and this `pair`:

    >>> from igap import PromptPair, activation_patching, compare, integrated_gradients, load_model
    >>> model = load_model()
    >>> pair = PromptPair(
    ...     clean="After John and Mary went to the store, Mary gave a bottle of milk to",
    ...     corrupted="After John and Mary went to the store, John gave a bottle of milk to",
    ...     answer=" John",
    ...     distractor=" Mary",
    ... )
    >>> ig, ap = integrated_gradients(model, pair), activation_patching(model, pair)
    >>> compare(ig, ap).outliers("heads")
    ['0.3', '0.5', '0.2', '0.6']

F is logit[answer] - logit[distractor] after the last token, the gap F(clean) - F(corrupted), and a score effect / gap.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from igap.analyses.ablation.ablate import Ablations, ablate
    from igap.analyses.output_curves import OutputCurves, output_curve
    from igap.attribution.activation_patching import activation_patching
    from igap.attribution.atp_star import atp_star
    from igap.attribution.attribution_patching import attribution_patching
    from igap.attribution.integrated_gradients import integrated_gradients
    from igap.attribution.maps import AttributionMap
    from igap.counterfactual.search import SearchResult, search
    from igap.engine.baselines import Baseline
    from igap.errors import InputError
    from igap.inputs.labelled_prompts import Prompt
    from igap.inputs.prompts import PromptPair
    from igap.models.load import load_model
    from igap.statistics.comparison import Comparison, compare

_HOMES = {
    "Ablations": "igap.analyses.ablation.ablate",
    "Prompt": "igap.inputs.labelled_prompts",
    "ablate": "igap.analyses.ablation.ablate",
    "AttributionMap": "igap.attribution",
    "InputError": "igap.errors",
    "Baseline": "igap.engine.baselines",
    "Comparison": "igap.statistics.comparison",
    "OutputCurves": "igap.analyses.output_curves",
    "PromptPair": "igap.inputs.prompts",
    "SearchResult": "igap.counterfactual.search",
    "activation_patching": "igap.attribution",
    "atp_star": "igap.attribution",
    "attribution_patching": "igap.attribution",
    "compare": "igap.statistics.comparison",
    "integrated_gradients": "igap.attribution",
    "load_model": "igap.models.load",
    "output_curve": "igap.analyses.output_curves",
    "search": "igap.counterfactual.search",
}

__all__ = [
    "Ablations",
    "AttributionMap",
    "Baseline",
    "Comparison",
    "InputError",
    "OutputCurves",
    "Prompt",
    "PromptPair",
    "SearchResult",
    "ablate",
    "activation_patching",
    "atp_star",
    "attribution_patching",
    "compare",
    "integrated_gradients",
    "load_model",
    "output_curve",
    "search",
]


def __getattr__(name: str) -> Any:
    # Importing the package costs nothing, so that `igap --help` answers at once; torch comes with the first name used.
    if name not in _HOMES:
        raise AttributeError(f"module 'igap' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
