"""What an estimator of activation patching says of each member of a target.

It comes from the methods of a run with their default settings, so that a run of the same pair shows the same numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from igap.attribution.estimators import Estimator, estimators
from igap.attribution.maps import AttributionMap
from igap.bench.cost import count_operations
from igap.components import Site
from igap.config import MetricConfig, PositionsConfig, RunConfig
from igap.counterfactual.objective.patch import Patch
from igap.counterfactual.target import Member, Target
from igap.engine.metrics import Custom
from igap.engine.open_pairs import open_tokens
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
    """An estimator and activation patching of the members of a target, each member alone, in the clean runs.

    AP begins at the members' activations in the corrupted run, and so does AtP, whose gradients are the clean runs'.
    Other estimators take passes of their own, which `complete` makes. Estimators without sign give magnitudes.
    """

    def __init__(self, pairs: Sequence[TokenPair], patch: Patch, estimator: str, memory_gib: float | None) -> None:
        """`pairs` are the clean prompts' reference pairs, `patch` is the target in the clean runs."""
        around = patch.contrast
        self._model, self._pairs, self._patch, self._target = around.model, tuple(pairs), patch, patch.target
        self._estimator = find_estimator(estimator)
        self._metric, self._backend = around.readout.metric, around.backend
        self._config = settings(self._estimator, self._target, self._metric)
        self._config = self._config.model_copy(update={"memory_gib": memory_gib})
        self._clean = torch.cat([pair.clean for pair in self._pairs])
        self._unpatched = around.value(around.clean)
        with torch.no_grad():
            self._one_pass = count_operations(partial(self._model, self._pairs[0].clean))[0]

    def beside_ap(
        self, sites: Mapping[tuple[Site, int], Tensor], mask: Bool[Tensor, "pair _row _pos"] | None
    ) -> Float[Tensor, "candidate pair 2 member"]:
        """The estimate and the AP effect of each member, in F's unit; what is not AtP's estimate is 0.

        Args:
            sites: activations of the target's places in the corrupted runs, as `Patch.activation` takes them.
            mask: the positions that are patched, as `Patch.mask` has it.
        """
        members = self._patch.members
        ends = [member.end(member.activation(sites), mask) for member in members]
        with torch.no_grad():
            values = [member.value(end, mask) for member, end in zip(members, ends, strict=True)]
        ap = torch.stack(values, -1) - self._unpatched[:, None, None]
        estimates = self._patch.estimates(ends) if self._estimator.name == "atp" else torch.zeros_like(ap)
        return torch.stack([estimates, ap], 2).transpose(0, 1)

    def complete(
        self, numbers: Float[Tensor, "candidate pair 2 member"], tokens: Int[Tensor, "pair candidate pos"]
    ) -> float:
        """Put into `numbers` the estimates that `beside_ap` leaves out, and 0 where the tokens are the clean prompt's.

        Returns the forward equivalents that they took, by the operations that torch counts.
        """
        same = (tokens == self._clean[:, None]).all(-1).T.cpu()
        numbers.masked_fill_(same[:, :, None, None], 0)
        if self._estimator.name == "atp":
            return 0.0
        operations, differing = 0, (~same.T).nonzero().tolist()
        for start in range(0, len(differing), _PAIRS_AT_ONCE):
            some = differing[start : start + _PAIRS_AT_ONCE]
            pairs = [
                replace(self._pairs[pair], corrupted=tokens[pair, candidate][None], corrupted_words=())
                for pair, candidate in some
            ]
            cost, made = count_operations(partial(self._measure_pairs, pairs))
            operations += cost
            rows, columns = zip(*some, strict=True)
            numbers[list(columns), list(rows), 0] = made.to(numbers)
        return operations / self._one_pass

    def _measure_pairs(self, pairs: Sequence[TokenPair]) -> Float[Tensor, "corrupted member"]:
        opened = open_tokens(self._model, pairs, sites=self._target.sites, metric=self._metric, backend=self._backend)
        estimates = torch.empty(len(pairs), len(self._target.members), dtype=self._model.W_E.dtype)
        for indices, contrast in opened.contrasts(self._estimator.baseline):
            by_site = {
                site: self._estimator.attribute(contrast, site, self._config, self._layers(site))
                for site in self._target.sites
            }
            for row, pair in enumerate(indices):
                each = [effect_at(by_site[member[0]][row], self._target, member) for member in self._target.members]
                estimates[pair] = torch.stack(each)
        return estimates

    def _layers(self, site: Site) -> list[int]:
        return sorted({layer for its, layer, _ in self._target.members if its == site})


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
