"""The analyses that there are, in the order in which a run does them."""

from collections.abc import Sequence
from typing import Any

from igap.analyses.ablation.analysis import AblationAnalysis
from igap.analyses.base import Analysis, settings_of
from igap.analyses.both_directions.analysis import BothDirectionsAnalysis
from igap.analyses.circuit.analysis import CircuitRecoveryAnalysis
from igap.analyses.curves.analysis import OutputCurvesAnalysis
from igap.analyses.direct_effect.analysis import DirectEffectAnalysis
from igap.analyses.edges.analysis import EdgesAnalysis
from igap.analyses.explain.analysis import ExplanationAnalysis
from igap.analyses.faithfulness.analysis import FaithfulnessAnalysis
from igap.analyses.mib import MibAnalysis
from igap.analyses.qk import QueriesKeysAnalysis
from igap.analyses.screening import ProxyFidelityAnalysis
from igap.analyses.self_repair.analysis import SelfRepairAnalysis
from igap.analyses.sets.analysis import SetsAnalysis
from igap.analyses.stability import StabilityAnalysis
from igap.config import RunConfig
from igap.errors import InputError, short_repr
from igap.inputs.prompts import TokenPair
from igap.models.load import Header

ANALYSES: dict[str, Analysis[Any]] = {
    analysis.name: analysis
    for analysis in (
        ProxyFidelityAnalysis(),
        QueriesKeysAnalysis(),
        CircuitRecoveryAnalysis(),
        ExplanationAnalysis(),
        OutputCurvesAnalysis(),
        AblationAnalysis(),
        FaithfulnessAnalysis(),
        BothDirectionsAnalysis(),
        SelfRepairAnalysis(),
        DirectEffectAnalysis(),
        EdgesAnalysis(),
        SetsAnalysis(),
        MibAnalysis(),
        StabilityAnalysis(),
    )
}
"""By name; a new analysis is one import and one more line here."""


def misfit(analysis: Any, config: RunConfig) -> str:
    """Return what an analysis is about if that is not what this config asks for: see `Analysis.misfit`."""
    reason: str = "of all effects, not of the largest alone (ap.top)" if config.ap.top else analysis.misfit(config)
    return reason


def check_analyses(config: RunConfig, header: Header) -> dict[str, str]:
    """Return the hashes of what analyses read, by their names for it, after each has refused what cannot be.

    Raises:
        InputError: A name or a setting in `analyses` that no analysis has, or what an analysis itself refuses.
    """
    known = [name for name, analysis in ANALYSES.items() if analysis.settings is not None]
    contents: dict[str, str] = {}
    for name in config.analyses:
        if name not in known:
            raise InputError(
                f"analyses: got {short_repr(name)}, wanted one of {', '.join(known) or 'none'}: the analyses that take "
                "their settings there. Correct the name, or register the analysis in igap/analyses/registry.py."
            )
    for name, analysis in ANALYSES.items():
        if name in config.analyses and analysis.settings is not None:
            settings_of(config, name, analysis.settings)
        item = "interactions" if name == "explain" and config.interactions else name
        if analysis.is_requested(config) and not analysis.automatic(config) and (reason := misfit(analysis, config)):
            settings, remedy = (
                f"metric={config.metric.name} positions={config.positions.kind}",
                "metric=logit_diff positions=all",
            )
            if config.ap.top is not None:
                settings, remedy = f"ap.top={config.ap.top}", "ap.top=null"
            raise InputError(
                f"{item}: got it together with {settings}, but it is {reason}. Leave it out, or use {remedy}."
            )
        contents |= analysis.check(config, header)
    return contents


def check_pairs(config: RunConfig, tokens: Sequence[TokenPair]) -> None:
    """Raise InputError where an analysis that the run does refuses these pairs."""
    for analysis in ANALYSES.values():
        if analysis.is_requested(config) and not misfit(analysis, config):
            analysis.check_pairs(config, tokens)


def missing_analyses(config: RunConfig) -> tuple[str, ...]:
    """Return the warning that a run leaves out analyses that it does otherwise; nothing where it leaves out none."""
    reasons: dict[str, list[str]] = {}
    for name, analysis in ANALYSES.items():
        if analysis.is_requested(config) and (reason := misfit(analysis, config)):
            reasons.setdefault(reason, []).append(name)
    return tuple(
        f"{', '.join(names)}: left out; {'it is' if len(names) == 1 else 'they are'} {reason}."
        for reason, names in reasons.items()
    )
