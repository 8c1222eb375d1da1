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

and with this finished run in the folder `runs/first`:

    >>> from igap import run
    >>> run("sites=heads", "plots=none", "tracking=disabled", folder="runs/first").summary["heads/n_outliers"]
    4

F is logit[answer] - logit[distractor] after the last token, the gap F(clean) - F(corrupted), and a score effect / gap.
"""

import importlib
import sys
import warnings
from typing import TYPE_CHECKING, Any

from igap.display.binding import bind

if TYPE_CHECKING:  # every public name, and the module that it lives in
    from igap.analyses.ablation.ablate import ablate as ablate
    from igap.analyses.ablation.results import Ablations as Ablations
    from igap.analyses.both_directions.directions import BothDirections as BothDirections
    from igap.analyses.both_directions.directions import both_directions as both_directions
    from igap.analyses.curves import OutputCurves as OutputCurves
    from igap.analyses.curves import output_curve as output_curve
    from igap.analyses.direct_effect.effects import DirectEffects as DirectEffects
    from igap.analyses.direct_effect.effects import direct_effect as direct_effect
    from igap.analyses.edges.effects import edge_effects as edge_effects
    from igap.analyses.edges.results import EdgeEffects as EdgeEffects
    from igap.analyses.self_repair.repair import SelfRepair as SelfRepair
    from igap.analyses.self_repair.repair import self_repair as self_repair
    from igap.analyses.sets.effects import set_effects as set_effects
    from igap.analyses.sets.results import SetEffects as SetEffects
    from igap.attribution.activation_patching import activation_patching as activation_patching
    from igap.attribution.atp_star import atp_star as atp_star
    from igap.attribution.attribution_patching import attribution_patching as attribution_patching
    from igap.attribution.effect_bound import EffectBound as EffectBound
    from igap.attribution.effect_bound import bound_effects as bound_effects
    from igap.attribution.integrated_gradients import integrated_gradients as integrated_gradients
    from igap.attribution.maps import AttributionMap as AttributionMap
    from igap.attribution.maps import Top as Top
    from igap.bench.exam import run_bench as run_bench
    from igap.bench.own_model import bench_model as bench_model
    from igap.counterfactual.config import Constraints as Constraints
    from igap.counterfactual.config import SpaceConfig as SpaceConfig
    from igap.counterfactual.search import SearchResult as SearchResult
    from igap.counterfactual.search import search as search
    from igap.engine.baselines import Baseline as Baseline
    from igap.errors import InputError as InputError
    from igap.inputs.labelled_prompts import Prompt as Prompt
    from igap.inputs.prompts import PromptPair as PromptPair
    from igap.interactive.opened import Run as Run
    from igap.interactive.opened import open_run as open_run
    from igap.interactive.sweep import Sweep as Sweep
    from igap.interactive.sweep import open_sweep as open_sweep
    from igap.interactive.whole_run import run as run
    from igap.models.load import load_model as load_model
    from igap.statistics.comparison import Comparison as Comparison
    from igap.statistics.comparison import compare as compare


def _homes() -> dict[str, str]:
    """The module of each public name, read from the lines above: there is no second list."""
    with open(__file__, encoding="utf-8") as file:
        imports = [line.split() for line in file if line.startswith("    from igap.")]
    return {words[-1]: words[1] for words in imports}


_HOMES = _homes()
__all__ = sorted(_HOMES)
bind(lambda: importlib.import_module("igap.interactive.figures").draw)


def __getattr__(name: str) -> Any:
    # Importing the package costs nothing, so that `igap --help` answers at once; torch comes with the first name used.
    if name == "metrics":
        return importlib.import_module("igap.metrics")
    if name not in _HOMES:
        raise AttributeError(f"module 'igap' has no attribute {name!r}")
    if _HOMES[name] not in sys.modules:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's, in notebooks without ipywidgets
            importlib.import_module(_HOMES[name])
    return getattr(sys.modules[_HOMES[name]], name)


def __dir__() -> list[str]:
    return [*globals(), *__all__, "metrics"]
