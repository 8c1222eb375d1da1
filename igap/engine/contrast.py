"""The question every method asks: what happens to F when a site moves from one activation to another?

`open_pairs` borrows the model for some pairs; `OpenPairs.contrasts` makes their two runs and fixes direction and
baseline. A method then only needs `Contrast.function` or `Contrast.patches` and the two ends of the path.
"""

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.components import SITES, Site
from igap.engine import baselines
from igap.engine.activations import Activations, ForwardPass, block_numbers, borrow, first_difference, realign, record
from igap.engine.baselines import Baseline
from igap.engine.batching import AdaptiveBatch, adaptive_batch
from igap.engine.forward import HOOKS, Backend, Engine, Route, choose_backend
from igap.engine.hooks import Gradients, PatchFunction, SiteFunction
from igap.engine.metrics import CustomMetric, Readout, check_custom, read_out
from igap.errors import InputError
from igap.inputs.prompts import PromptPair, TokenPair, min_scored_gap, tokenize
from igap.models.families import check_columns
from igap.vocabulary import BaselineKind, Direction, MetricName, denoising_problem

T = TypeVar("T")

_PAIRS_A_PASS, _TOKENS_A_PASS = 64, 2048
"""A pass has a row of every pair at least, so that pairs of long prompts share none."""


@dataclass(frozen=True, eq=False)
class Contrast:
    """Runs of pairs that share a pass, and for each site and layer the activations they have and are moved to."""

    model: TransformerBridge
    pairs: tuple[TokenPair, ...]
    """Pairs of equal lengths whose activations change from one position on; axis `pair` of every tensor."""
    clean: ForwardPass
    corrupted: ForwardPass
    base: ForwardPass
    """The runs the site is changed in: clean when noising, corrupted when denoising."""
    source: Activations
    """a' for every site of the runs, one tensor a layer, at all positions of `base`; without a partner a stays."""
    first: int
    """The first position at which an activation changes."""
    backend: Backend
    readout: Readout
    """F of the pairs."""
    engine: Engine
    """The backend's, for all of the pairs."""
    where: Bool[Tensor, "pair pos"] | None = None
    """The positions at which activations change; None: all."""

    @property
    def gap(self) -> Tensor:
        """D = F(clean) - F(corrupted) of each pair, whatever the direction and baseline."""
        return self._value(self.clean) - self._value(self.corrupted)

    def _value(self, run: ForwardPass) -> Tensor:
        """F of each pair in one of the two runs."""
        return run.logit_diff if run.logits is None else self.readout(run.logits)

    @property
    def least_gaps(self) -> list[float]:
        """The absolute gap, in F's unit, below which each pair has no scores."""
        return [
            min_scored_gap(pair.min_gap, clean)
            for pair, clean in zip(self.pairs, self._value(self.clean).tolist(), strict=True)
        ]

    @property
    def direction(self) -> Direction:
        """Which run the site is changed in."""
        return "noising" if self.base is self.clean else "denoising"

    @property
    def n_layers(self) -> int:
        """Blocks of the model."""
        return len(self.base.residual)

    def n_components(self, site: Site) -> int:
        """Components of the site in one layer. Raises InputError on a site that was not asked for."""
        if site not in self.base.activations:
            raise InputError(f"site: got {site!r}, wanted one that was asked for. Add it to sites.")
        return self.base.activations[site][0].shape[2]

    def check(self, site: Site) -> None:
        """Raises InputError where the site's columns are not the model's components."""
        self.n_components(site)
        check_columns(self.model, site, self.base.activations[site][0].shape[2:])

    @property
    def widths(self) -> dict[Site, int | None]:
        """Components of each site in one layer, None of a site whose activations were not asked for."""
        return {site: self.n_components(site) if site in self.base.activations else None for site in SITES}

    def function(self, site: Site, layer: int) -> SiteFunction:
        """F as a function of this site's activation in this layer, at the positions from `first` on."""
        return self.engine.function(site, layer)

    def patches(self, site: Site, layer: int) -> PatchFunction:
        """F with single components of this site and layer moved from start to end."""
        return self.engine.patches(site, layer, *self.ends(site, layer))

    def ends(self, site: Site, layer: int) -> tuple[Tensor, Tensor]:
        """The path's start a (in the run) and end a' (its replacement), each `[pair, pos, ...]` from `first` on."""
        self.check(site)
        start, end = (of[site][layer][:, self.first :] for of in (self.base.activations, self.source))
        if self.where is not None:
            where = self.where[:, self.first :]
            end = torch.where(where.view(*where.shape, *[1] * (start.ndim - 2)), end, start)
        return start, end

    def at(self, where: Bool[Tensor, "pair pos"]) -> "Contrast":
        """The contrast in which activations change at these positions of the base run alone."""
        where = where if self.where is None else where & self.where
        if where.all():
            return self
        chosen = where.any(0).nonzero().flatten().tolist()
        first = max(self.first, min(chosen, default=self.first))
        engine = self.engine
        if first > self.first:
            engine = self.backend.engine(self.model, self.readout, self.base, first)
        return replace(self, where=where, first=first, engine=engine)

    def moved(self, site: Site, layer: int) -> Tensor:
        """Whether a component's activation differs between the ends, `[pair, component]`; if not its effect is 0."""
        start, end = self.ends(site, layer)
        differs = start != end
        return (differs.any(-1) if differs.ndim == 4 else differs).any(1)

    def path(self, site: Site, layer: int, few: list[int]) -> tuple[SiteFunction, Tensor, Tensor]:
        """`function` and `ends` of some of the pairs."""
        start, end = self.ends(site, layer)
        if len(few) == len(self.pairs):
            return self.function(site, layer), start, end
        return self._engine(few).function(site, layer), start[few], end[few]

    def gradients(self, site: Site, few: list[int], *, dropping: bool = False) -> Gradients:
        """dF/da of some of the pairs, where they are, layer by layer in any order; see `Hooks.gradients`."""
        return self._engine(few).gradients(site, dropping=dropping)

    def _engine(self, few: list[int]) -> Engine:
        if len(few) == len(self.pairs):
            return self.engine
        return self.backend.engine(self.model, self.readout.select(few), self.base.select(few), self.first)

    def rows(
        self, asked: int | None, memory_gib: float | None, *, gradients: bool, whole: bool = False
    ) -> AdaptiveBatch:
        """How many rows a pass has, counting those of all pairs; `whole` where it is of the whole model, hooked."""
        run, cfg = self.base, self.model.cfg
        n_tokens = run.tokens.shape[1]
        whole = whole or self.backend.route == "hooks"
        changed = n_tokens if whole else n_tokens - self.first
        # What one block holds at its fullest; with gradients every block keeps about that much.
        numbers = changed * block_numbers(self.model) + 2 * n_tokens * (cfg.d_model + 2 * cfg.n_heads * changed)
        if whole or not self.readout.is_logit_diff:
            numbers += cfg.d_vocab
        kept = self.n_layers if gradients else 1
        size, device = numbers * run.residual[0].element_size(), run.tokens.device
        return adaptive_batch(size, kept, device, asked, memory_gib, recomputes=gradients and not whole)


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
        metric: MetricName | CustomMetric = "logit_diff",
    ) -> None:
        """Tokenises the pairs; see `open_pairs`."""
        self.model, self._metric = model, metric
        self.pairs = tuple(pairs)
        self.tokens = tuple(tokenize(model, pair) for pair in self.pairs)
        """The pairs as token ids, in their order."""
        self._sites, self._asked = tuple(sites), route
        self._backend: Backend | None = HOOKS if route == "hooks" else None
        self._room, self._held = kept, dict[int, int]()
        self._kept: dict[Hashable, Any] = {}

    def contrasts(
        self, baseline: BaselineKind | Baseline = "corrupted", direction: Direction = "noising"
    ) -> Iterator[tuple[tuple[int, ...], Contrast]]:
        """The contrast of each group of pairs that share a pass, with the indices of its pairs.

        Pairs of equal lengths and equal first differences come together.

        Args:
            baseline: What the activations move to, when noising.
            direction: `denoising` is the mirror, clean activations into the corrupted run.

        Raises:
            InputError: A baseline other than `corrupted` with `denoising`, or one that these pairs cannot have.
        """
        baseline = baseline if isinstance(baseline, Baseline) else Baseline(baseline)
        if problem := denoising_problem(direction, baseline.kind):
            raise InputError(problem)
        for indices in _groups(self.tokens):
            make = partial(self._contrast, indices, baseline, direction)
            yield indices, self._keep((indices, baseline, direction), make, _layers_of_contrast)

    def _contrast(self, indices: tuple[int, ...], baseline: Baseline, direction: Direction) -> Contrast:
        group = tuple(self.tokens[index] for index in indices)
        clean, corrupted = self._keep(indices, partial(self._record, group), _layers_of_runs)
        readout = read_out(group, clean.tokens.device, self._metric, clean.logits)
        if not isinstance(self._metric, str) and clean.logits is not None:
            check_custom(self._metric, group[0], clean.logits[0])
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
            first = first_difference(base.activations, source)
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
                with_logits=self._metric != "logit_diff",
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
    metric: MetricName | CustomMetric = "logit_diff",
) -> Iterator[OpenPairs]:
    """A block in which the model is frozen and contrasts of these pairs can be had; it comes back unchanged.

    Args:
        model: Borrowed: modes and gradient flags are given back, also after an error.
        pairs: One pair or several.
        sites: Those that contrasts are asked about.
        route: How F is computed; None chooses the faster route that is right for this model.
        metric: F.
        kept_bytes: How much of what contrasts share may be held between them, in bytes. By default nothing: right where
            all pairs are gone through once.

    Raises:
        InputError: No pair, a pair that does not suit the model, or a route that the model does not have.
    """
    pairs = [pairs] if isinstance(pairs, PromptPair) else list(pairs)
    if not pairs:
        raise InputError("prompts: got no pair, wanted at least one.")
    opened = OpenPairs(model, pairs, sites, route, kept_bytes, metric)
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
    metric: MetricName | CustomMetric = "logit_diff",
) -> Iterator[Contrast]:
    """The contrast of one prompt pair, open in this block; see `open_pairs` and `OpenPairs.contrasts`."""
    with open_pairs(model, pair, sites=sites, route=route, metric=metric) as opened:
        yield next(opened.contrasts(baseline, direction))[1]


def _groups(pairs: Sequence[TokenPair]) -> list[tuple[int, ...]]:
    """Indices of pairs that can share a pass, in the order of their first member."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for index, pair in enumerate(pairs):
        shape = (pair.clean.shape[1], pair.corrupted.shape[1])
        alike.setdefault((*shape, pair.first_difference, pair.first_difference_in_corrupted), []).append(index)
    return [
        tuple(group[start : start + at_once])
        for (n_tokens, *_), group in alike.items()
        for at_once in [max(1, min(_PAIRS_A_PASS, _TOKENS_A_PASS // n_tokens))]
        for start in range(0, len(group), at_once)
    ]
