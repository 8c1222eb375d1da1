"""igap: Integrated Gradients against activation patching, for attention heads and MLP neurons of transformers."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from igap.ablation import Ablations, ablate
    from igap.attribution.activation_patching import activation_patching
    from igap.attribution.atp_star import atp_star
    from igap.attribution.attribution_patching import attribution_patching
    from igap.attribution.integrated_gradients import integrated_gradients
    from igap.attribution.maps import AttributionMap
    from igap.baselines import Baseline
    from igap.comparison import Comparison, compare
    from igap.counterfactual.search import SearchResult, search
    from igap.curves import OutputCurves, output_curve
    from igap.datasets.answered import Prompt
    from igap.errors import InputError
    from igap.models.load import load_model
    from igap.prompts import PromptPair

_HOMES = {
    "Ablations": "igap.ablation",
    "Prompt": "igap.datasets.answered",
    "ablate": "igap.ablation",
    "AttributionMap": "igap.attribution",
    "InputError": "igap.errors",
    "Baseline": "igap.baselines",
    "Comparison": "igap.comparison",
    "OutputCurves": "igap.curves",
    "PromptPair": "igap.prompts",
    "SearchResult": "igap.counterfactual.search",
    "activation_patching": "igap.attribution",
    "atp_star": "igap.attribution",
    "attribution_patching": "igap.attribution",
    "compare": "igap.comparison",
    "integrated_gradients": "igap.attribution",
    "load_model": "igap.models.load",
    "output_curve": "igap.curves",
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
