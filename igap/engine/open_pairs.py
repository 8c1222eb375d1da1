"""Pairs of a borrowed model, and every contrast of them, whose parts are made once and shared."""

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.components import SITES, Site
from igap.engine import baselines
from igap.engine.activations import ForwardPass, borrow, first_difference, realign, record
from igap.engine.backend import HOOKS, Backend, Route, choose_backend
from igap.engine.baselines import Baseline
from igap.engine.contrast import Contrast
from igap.engine.metrics import Custom, as_metric, as_metrics, check_custom, read_out
from igap.errors import InputError
from igap.inputs.prompts import PromptPair, TokenPair, tokenize
from igap.metrics import AnyMetric, LogitDiff, Metric
from igap.vocabulary import BaselineKind, Direction, denoising_problem

T = TypeVar("T")
Where = Callable[[Sequence[TokenPair]], Bool[Tensor, "pair pos"] | None]
BaselineOf = Callable[[Sequence[TokenPair]], Baseline]

_PAIRS_A_PASS, _TOKENS_A_PASS = 64, 2048
"""A pass has a row of every pair at least, so that pairs of long prompts share none."""


class OpenPairs:
    """Pairs of a borrowed model: their tokens, and every contrast of them, whose parts are made once and shared.

    The two runs of a pair, the model's weights and, for each baseline and direction, the activations to move to are
    made when they are first asked for, and kept as far as their tensors fit into the bytes allowed. What does not fit
    is made again each time it is asked for. Made by `open_pairs`, and of use only inside that block.
    """

    def __init__(
        self,
        model: TransformerBridge,
        pairs: Sequence[PromptPair],
        sites: Sequence[Site],
        route: Route | None,
        kept: float,
        metric: AnyMetric | Sequence[AnyMetric] = "logit_diff",
        beside: Sequence[AnyMetric] = (),
        where: Where | None = None,
        tokens: Sequence[TokenPair] | None = None,
        backend: Backend | None = None,
    ) -> None:
        """Tokenises the pairs; see `open_pairs`, and `open_tokens`."""
        self.model, self._where = model, where
        self.metrics = as_metrics(metric)
        """F, by one metric or several."""
        self._with_logits = not all(isinstance(each, LogitDiff) for each in (*self.metrics, *map(as_metric, beside)))
        self.pairs = tuple(pairs)
        several = all(each.takes_several for each in self.metrics)
        self.tokens = tuple(tokens or (tokenize(model, pair, several=several) for pair in self.pairs))
        """The pairs as token ids, in their order."""
        self._sites, self._asked = tuple(sites), route
        self._backend: Backend | None = HOOKS if route == "hooks" else backend
        self._room, self._held = kept, dict[int, int]()
        self._kept: dict[Hashable, Any] = {}

    def contrasts(
        self,
        baseline: BaselineKind | Baseline | BaselineOf = "corrupted",
        direction: Direction = "noising",
        metrics: Sequence[Metric] | None = None,
    ) -> Iterator[tuple[tuple[int, ...], Contrast]]:
        """The contrast of each group of pairs that share a pass, with the indices of its pairs.

        Pairs of equal lengths and equal first differences come together.

        Args:
            baseline: What the activations move to, when noising; or a function of each group's pairs.
            direction: `denoising` is the mirror, clean activations into the corrupted run.
            metrics: F, where it is not what the pairs were opened with; of `beside`, or among those.

        Raises:
            InputError: A baseline other than `corrupted` with `denoising`, or one that these pairs cannot have.
        """
        for indices in _groups(self.tokens):
            own = baseline([self.tokens[index] for index in indices]) if callable(baseline) else baseline
            own = own if isinstance(own, Baseline) else Baseline(own)
            if problem := denoising_problem(direction, own.kind):
                raise InputError(problem)
            make = partial(self._contrast, indices, own, direction)
            contrast = self._keep((indices, own, direction), make, _layers_of_contrast)
            mask = None if self._where is None else self._where(contrast.pairs)
            contrast = contrast if mask is None else contrast.at(mask)
            yield indices, contrast if metrics is None else contrast.with_metrics(metrics)

    def _contrast(self, indices: tuple[int, ...], baseline: Baseline, direction: Direction) -> Contrast:
        group = tuple(self.tokens[index] for index in indices)
        clean, corrupted = self._keep(indices, partial(self._record, group), _layers_of_runs)
        readout = read_out(group, clean.tokens.device, self.metrics, clean.logits)
        for metric in self.metrics:
            if isinstance(metric, Custom):
                try_on(metric, group, clean, corrupted)
        into_clean = realign(corrupted, clean, [pair.alignment.clean for pair in group])
        if direction == "noising":
            base = clean
            source = baselines.activations(baselines.Request(self.model, group, clean, into_clean, baseline))
        else:
            base = corrupted
            source = realign(clean, corrupted, [pair.alignment.corrupted for pair in group])
        if baseline.kind == "corrupted":
            # Compare tokens, not activations: rounding can differ before the first changed token.
            first = group[0].first_difference if direction == "noising" else group[0].first_difference_in_corrupted
        else:
            first = min(first_difference(base.activations, source), base.tokens.shape[1] - group[0].n_read)
        if self._backend is None:
            first_pair = {site: tuple(layer[:1] for layer in layers) for site, layers in into_clean.items()}
            chosen = choose_backend(
                self.model, readout.select([0]), clean.select([0]), first_pair, group[0].first_difference
            )
            if self._asked == "suffix" and chosen.route != "suffix":
                raise InputError(
                    f"route: got suffix, which this model does not have: {chosen.reason}. Use route=hooks."
                )
            self._backend = chosen
        return Contrast(
            model=self.model,
            pairs=group,
            clean=clean,
            corrupted=corrupted,
            base=base,
            direction=direction,
            source=source,
            first=first,
            backend=self._backend,
            readout=readout,
            engine=self._backend.engine(self.model, readout, base, first),
        )

    def _record(self, group: Sequence[TokenPair]) -> tuple[ForwardPass, ForwardPass]:
        """The clean and the corrupted run."""
        clean, corrupted = (
            record(
                self.model,
                torch.cat([getattr(pair, name) for pair in group]),
                group,
                name=name,
                sites=self._sites,
                with_logits=self._with_logits,
            )
            for name in ("clean", "corrupted")
        )
        return clean, corrupted

    def _keep(self, key: Hashable, make: Callable[[], T], layers: Callable[[T], Iterable[Iterable[Tensor]]]) -> T:
        """What `make` gives, made once if the tensors of its layers fit beside what is kept already."""
        if key in self._kept:
            kept: T = self._kept[key]
            return kept
        made = make()
        storages = [tensor.untyped_storage() for tensor in itertools.chain(*layers(made))]
        held = self._held | {storage.data_ptr(): storage.nbytes() for storage in storages}
        if sum(held.values()) <= self._room:
            self._kept[key], self._held = made, held
        return made

    def close(self) -> None:
        """Let go of all that is kept."""
        self._kept.clear()
        self._held.clear()


def open_tokens(
    model: TransformerBridge,
    pairs: Sequence[TokenPair],
    *,
    sites: Sequence[Site],
    metric: AnyMetric,
    backend: Backend,
) -> OpenPairs:
    """Pairs that are token ids already, of a model that is frozen meanwhile; all that contrasts share is kept.

    `backend` is the one that `choose_backend` has found for this model.
    """
    return OpenPairs(model, (), sites, None, math.inf, metric, tokens=pairs, backend=backend)


def try_on(metric: Custom, group: Sequence[TokenPair], *runs: ForwardPass) -> None:
    """Raises InputError where the caller's function is no metric after some prompt of the runs."""
    for run in runs:
        assert run.logits is not None
        for pair, logits in zip(group, run.logits, strict=True):
            check_custom(metric.function, pair, logits)


def _layers_of_runs(runs: Sequence[ForwardPass]) -> list[Iterable[Tensor]]:
    return [layers for run in runs for layers in (run.residual, *run.activations.values())]


def _layers_of_contrast(made: Contrast) -> list[Iterable[Tensor]]:
    return [*_layers_of_runs((made.clean, made.corrupted)), *made.source.values()]


@contextmanager
def open_pairs(
    model: TransformerBridge,
    pairs: PromptPair | Sequence[PromptPair],
    *,
    sites: Sequence[Site] = SITES,
    route: Route | None = None,
    kept_bytes: float = 0.0,
    metric: AnyMetric | Sequence[AnyMetric] = "logit_diff",
    beside: Sequence[AnyMetric] = (),
    where: Where | None = None,
) -> Iterator[OpenPairs]:
    """A block in which the model is frozen and contrasts of these pairs can be had; it comes back unchanged.

    Args:
        model: Borrowed: modes and gradient flags are given back, also after an error.
        pairs: One pair or several.
        sites: Those that contrasts are asked about.
        route: How F is computed; None chooses the faster route that is right for this model.
        metric: F, or several, of which contrasts have one after the other: see `metrics.Readout`.
        beside: Further metrics, which `contrasts` may be asked for.
        where: Pairs of one length to the positions at which their activations change; None: all of them.
        kept_bytes: How much of what contrasts share may be held between them, in bytes. By default nothing: right where
            all pairs are gone through once.

    Raises:
        InputError: No pair, a pair that does not suit the model, or a route that the model does not have.
    """
    pairs = [pairs] if isinstance(pairs, PromptPair) else list(pairs)
    if not pairs:
        raise InputError("prompts: got no pair, wanted at least one.")
    opened = OpenPairs(model, pairs, sites, route, kept_bytes, metric, beside, where)
    with borrow(model):
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def contrast(
    model: TransformerBridge,
    pair: PromptPair,
    *,
    baseline: BaselineKind | Baseline = "corrupted",
    direction: Direction = "noising",
    route: Route | None = None,
    sites: Sequence[Site] = SITES,
    metric: AnyMetric | Sequence[AnyMetric] = "logit_diff",
) -> Iterator[Contrast]:
    """The contrast of one prompt pair, open in this block; see `open_pairs` and `OpenPairs.contrasts`."""
    with open_pairs(model, pair, sites=sites, route=route, metric=metric) as opened:
        yield next(opened.contrasts(baseline, direction))[1]


def _groups(pairs: Sequence[TokenPair]) -> list[tuple[int, ...]]:
    """Indices of pairs that can share a pass, in the order of their first member."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for index, pair in enumerate(pairs):
        shape = (pair.clean.shape[1], pair.corrupted.shape[1], pair.n_read, pair.has_logit_diff)
        alike.setdefault((*shape, pair.first_difference, pair.first_difference_in_corrupted), []).append(index)
    return [
        tuple(group[start : start + at_once])
        for (n_tokens, *_), group in alike.items()
        for at_once in [max(1, min(_PAIRS_A_PASS, _TOKENS_A_PASS // n_tokens))]
        for start in range(0, len(group), at_once)
    ]
