"""What an estimator of activation patching says of each member of a target, beside activation patching itself.

Both come from the methods of a run with their default settings, so that a run of the same pair shows the same numbers.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from igap.attribution.activation_patching import patch_components
from igap.attribution.estimators import Estimator, estimators
from igap.attribution.maps import AttributionMap
from igap.bench.cost import count_operations
from igap.components import Site
from igap.config import MetricConfig, PositionsConfig, RunConfig
from igap.counterfactual.objective.patch import find_positions
from igap.counterfactual.target import Member, Target
from igap.engine.contrast import Contrast
from igap.engine.metrics import Custom
from igap.engine.open_pairs import OpenPairs, open_tokens
from igap.errors import InputError, did_you_mean, short_repr
from igap.inputs.prompts import TokenPair
from igap.metrics import Metric

_PAIRS_AT_ONCE = 32
"""Pairs whose runs are held side by side."""


def find_estimator(name: str) -> Estimator:
    """The estimator of this name. Raises InputError where there is none, and on activation patching itself."""
    known = {each: estimator for each, estimator in estimators().items() if each != "ap"}
    if name not in known:
        raise InputError(
            f"estimator: got {short_repr(name)}, wanted one of {', '.join(known)}, which is compared with activation "
            f"patching.{did_you_mean(name, list(known))}"
        )
    return known[name]


def settings(estimator: Estimator, target: Target, metric: Metric) -> RunConfig:
    """The settings of a run that shows the estimator at the target."""
    positions = target.positions
    if target.where is not None:
        positions = PositionsConfig(spans={str(target.span): list(target.where)})
    name = "custom" if isinstance(metric, Custom) else metric.name
    changed = {"positions": positions, "metric": MetricConfig.model_construct(name=name)}
    return estimator.config.model_copy(update=changed)


class EstimatorErrors:
    """An estimator and activation patching of the members of a target, each member alone, in any pairs."""

    def __init__(
        self,
        pairs: Sequence[TokenPair],
        target: Target,
        estimator: str,
        around: Contrast,
        memory_gib: float | None,
    ) -> None:
        """`pairs` are the clean prompts' reference pairs, `target` is resolved, `around` the clean runs' contrast."""
        self._model, self._pairs, self._target = around.model, tuple(pairs), target
        metric, model = around.readout.metric, around.model
        self._estimator = find_estimator(estimator)
        self._metric, self._backend, self._memory = metric, around.backend, memory_gib
        self._config = settings(self._estimator, target, metric).model_copy(update={"memory_gib": memory_gib})
        with torch.no_grad():
            self._one_pass = count_operations(partial(model, self._pairs[0].clean))[0]

    def measure(
        self, tokens: Int[Tensor, "pair candidate pos"]
    ) -> tuple[Float[Tensor, "candidate pair 2 member"], float]:
        """The estimate and the AP effect of each member, in F's unit; 0 where the tokens are the clean prompt's.

        An estimator without sign gives magnitudes. Beside them the forward equivalents that they took, by the
        operations that torch counts: all passes of both methods.
        """
        n_pairs, n = tokens.shape[:2]
        numbers = torch.zeros(n, n_pairs, 2, len(self._target.members), dtype=self._model.W_E.dtype)
        clean, operations = torch.cat([pair.clean for pair in self._pairs])[:, None], 0
        differing = (tokens != clean).any(-1).nonzero().tolist()
        for start in range(0, len(differing), _PAIRS_AT_ONCE):
            some = differing[start : start + _PAIRS_AT_ONCE]
            pairs = [
                replace(self._pairs[pair], corrupted=tokens[pair, candidate][None], corrupted_words=())
                for pair, candidate in some
            ]
            cost, made = count_operations(partial(self._measure_pairs, pairs))
            operations += cost
            rows, columns = zip(*some, strict=True)
            numbers[list(columns), list(rows)] = made.to(numbers)
        return numbers, operations / self._one_pass

    def _measure_pairs(self, pairs: Sequence[TokenPair]) -> Float[Tensor, "given 2 member"]:
        opened = open_tokens(self._model, pairs, sites=self._target.sites, metric=self._metric, backend=self._backend)
        effects = torch.empty(len(pairs), 2, len(self._target.members))
        effects = effects.to(self._model.W_E.dtype)
        for place, maps in enumerate((self._estimates(opened), self._patches(opened))):
            for pair, by_site in maps:
                each = [effect_at(by_site[member[0]], self._target, member) for member in self._target.members]
                effects[pair, place] = torch.stack(each)
        return effects

    def _estimates(self, opened: OpenPairs) -> list[tuple[int, dict[Site, AttributionMap]]]:
        """The estimator's maps of each pair, by site."""
        made = []
        for indices, contrast in opened.contrasts(self._estimator.baseline):
            by_site = {
                site: self._estimator.attribute(contrast, site, self._config, self._layers(site))
                for site in self._target.sites
            }
            made += [(pair, {site: maps[row] for site, maps in by_site.items()}) for row, pair in enumerate(indices)]
        return made

    def _patches(self, opened: OpenPairs) -> list[tuple[int, dict[Site, AttributionMap]]]:
        """The same of activation patching, of the members alone."""
        made = []
        for indices, contrast in opened.contrasts():
            where = find_positions(self._target, contrast.pairs)
            moved = contrast if where is None else contrast.at(where)
            by_site = {}
            for site in self._target.sites:
                chosen = torch.zeros(contrast.n_layers, contrast.n_components(site), dtype=torch.bool)
                for _, layer, index in self._members(site):
                    chosen[layer, index] = True
                by_site[site] = patch_components(moved, site, chosen=chosen, memory_gib=self._memory)
            made += [(pair, {site: maps[row] for site, maps in by_site.items()}) for row, pair in enumerate(indices)]
        return made

    def _members(self, site: Site) -> list[Any]:
        return [member for member in self._target.members if member[0] == site]

    def _layers(self, site: Site) -> list[int]:
        return sorted({layer for _, layer, _ in self._members(site)})


def effect_at(made: AttributionMap, target: Target, member: Member) -> Float[Tensor, ""]:
    """A map's effect of a member at the target's span, in F's unit."""
    _, layer, index = member
    effect: Tensor = made.effect[layer, ..., index]
    return effect if made.spans is None else effect[made.spans.index(str(target.span))]


def signed_errors(
    numbers: Float[Tensor, "candidate pair 2 member"], estimator: str
) -> Float[Tensor, "candidate pair member"]:
    """Estimate less AP, in F's unit; of an estimator without sign less |AP|."""
    estimate, ap = numbers.unbind(2)
    return estimate - (ap if find_estimator(estimator).method.signed else ap.abs())


def check_estimator(name: str, target: Target, metric: Metric, n_layers: int | None) -> None:
    """Raises InputError where the estimator says nothing of the target."""
    estimator = find_estimator(name)
    config = settings(estimator, target, metric)
    for site in target.sites:
        why = estimator.method.missing(config, site, n_layers or 2)
        if why:
            raise InputError(
                f"estimator: got {name} of {target.name}, but it is {why}. Use another estimator, or another head."
            )
    if estimator.name == "ig" and all(Target((member,), target.span).ig_is_ap for member in target.members):
        raise InputError(
            f"estimator: got ig of {target.name}, whose IG is its AP, since nothing else moves along the path. Use "
            "another estimator, or heads."
        )
