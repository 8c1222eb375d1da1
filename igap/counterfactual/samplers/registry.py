"""The samplers by name: a line here is all that the rest of the search needs to know of one."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from igap.counterfactual.samplers.base import Proposer
    from igap.counterfactual.spaces.base import Space


@dataclass(frozen=True)
class SamplerEntry:
    """The location of a sampler, and the studies it serves."""

    location: str
    """MODULE:NAME, imported when a search begins, so that configs are checked without torch. The name is a `Proposer`
    function, or a class that is called with (space, seed, n_objectives) and whose instances are such functions."""
    one_objective: bool = True
    """True if it serves studies with one objective."""
    several_objectives: bool = False
    """True if it serves Pareto studies."""
    needs_gradient: bool = False
    """True if it serves only objectives with first-order scores. Others take scores of 0 for words all alike."""
    random_trials: bool = True
    """True if random trials come before and after its own: the start, and the control."""


_HERE = "igap.counterfactual.samplers"

SAMPLERS: dict[str, SamplerEntry] = {
    "hybrid": SamplerEntry(f"{_HERE}.hybrid:hybrid"),
    "gradient": SamplerEntry(f"{_HERE}.gradient:gradient", needs_gradient=True),
    "evolution": SamplerEntry(f"{_HERE}.evolution:evolution"),
    "thompson": SamplerEntry(f"{_HERE}.thompson:thompson"),
    "gcg": SamplerEntry(f"{_HERE}.gcg:gcg", needs_gradient=True),
    "adapt": SamplerEntry(f"{_HERE}.adapt:adapt", needs_gradient=True),
    "epo": SamplerEntry(f"{_HERE}.pareto:epo", one_objective=False, several_objectives=True, needs_gradient=True),
    "nsga2": SamplerEntry(f"{_HERE}.optuna_samplers:NSGA2", several_objectives=True),
    "tpe": SamplerEntry(f"{_HERE}.optuna_samplers:TPE", several_objectives=True),
    "gp": SamplerEntry(f"{_HERE}.optuna_samplers:GP"),
    "random": SamplerEntry(f"{_HERE}.undirected:random", several_objectives=True, random_trials=False),
    "brute": SamplerEntry(f"{_HERE}.undirected:brute", several_objectives=True, random_trials=False),
}
"""The first that serves a study is its default (`auto`)."""


class SamplerNames:
    """All names that `search.sampler` takes, those registered later among them."""

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def __iter__(self) -> Iterator[str]:
        return iter(("auto", *SAMPLERS))

    def __repr__(self) -> str:
        return f"one of {', '.join(self)}"


def samplers_for(n_objectives: int, *, gradient: bool = True) -> list[str]:
    """The names of the samplers that serve a study with this many objectives, the default first.

    `gradient`: whether the objective has first-order scores.
    """
    return [
        name
        for name, entry in SAMPLERS.items()
        if (entry.one_objective if n_objectives == 1 else entry.several_objectives)
        and (gradient or not entry.needs_gradient)
    ]


def make_sampler(name: str, space: "Space", seed: int, n_objectives: int) -> "Proposer":
    """The sampler of this name, for one search.

    Args:
        name: a key of `SAMPLERS`.
        space: the candidates.
        seed: of samplers that have a random generator of their own; the others get one with each call.
        n_objectives: terms of the objective.
    """
    module, _, attribute = SAMPLERS[name].location.partition(":")
    made = getattr(importlib.import_module(module), attribute)
    proposer: Proposer = made(space, seed, n_objectives) if isinstance(made, type) else made
    return proposer
