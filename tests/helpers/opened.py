"""Functions of open pairs, called with a model and its pairs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from igap.analyses.base import RunContext
from igap.analyses.explain import interactions as _interactions
from igap.analyses.registry import ANALYSES
from igap.attribution import decomposition
from igap.attribution import qk_patching as _qk
from igap.config import RunConfig
from igap.engine import site_sets
from igap.engine.open_pairs import open_pairs


def _with_pairs(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(model, pairs, *given, route=None, **options):
        with open_pairs(model, pairs, route=route) as opened:
            return function(opened, *given, **options)

    return call


decompose = _with_pairs(decomposition.decompose)
interactions = _with_pairs(_interactions.interactions)
qk_patching = _with_pairs(_qk.qk_patching)
set_metrics = _with_pairs(site_sets.set_metrics)


@contextmanager
def run_context(config: RunConfig, model, pairs, maps, comparisons) -> Iterator[RunContext]:
    """A run of these pairs after its comparison."""
    with open_pairs(model, pairs, sites=config.asked_sites) as opened:
        yield RunContext(config, opened, maps, comparisons)


def follow(name: str, config: RunConfig, model, pairs, maps, comparisons, told=None) -> Any:
    """What the analysis of this name finds out about these maps of the pairs."""
    with run_context(config, model, pairs, maps, comparisons) as context:
        return ANALYSES[name].run(context, told)
