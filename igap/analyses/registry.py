"""The analyses that there are, in the order in which a run does them."""

from typing import Any

from igap.analyses.ablation.analysis import AblationAnalysis
from igap.analyses.base import Analysis
from igap.analyses.circuit_recovery.analysis import CircuitRecoveryAnalysis
from igap.analyses.explanation.analysis import ExplanationAnalysis
from igap.analyses.faithfulness.analysis import FaithfulnessAnalysis
from igap.analyses.output_curves.analysis import OutputCurvesAnalysis
from igap.analyses.proxy_fidelity import ProxyFidelityAnalysis
from igap.analyses.queries_keys import QueriesKeysAnalysis

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
    )
}
"""By name; a new analysis is one more line here."""
