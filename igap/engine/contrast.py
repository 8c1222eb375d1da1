"""The question every method asks: what happens to F when a site moves from one activation to another?

`OpenPairs.contrasts` makes the two runs of some pairs and fixes direction and baseline. A method then only needs
`Contrast.function` or `Contrast.patches` and the two ends of the path.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.components import PLACES, Site
from igap.engine.activations import Activations, ForwardPass, block_numbers, hold, realign, record
from igap.engine.backend import Backend, Engine
from igap.engine.batching import AdaptiveBatch, adaptive_batch
from igap.engine.hooks import Gradients, Hooks, PatchFunction, RowGradients, SiteFunction, edit_sites
from igap.engine.metrics import Readout
from igap.engine.positions import Positions, Spans, find_spans
from igap.engine.rules import Rules
from igap.errors import InputError
from igap.inputs.prompts import TokenPair, min_scored_gap
from igap.metrics import LogitDiff, Metric
from igap.models.families import check_columns
from igap.vocabulary import Direction


@dataclass(frozen=True, eq=False)
class Contrast:
    """Runs of pairs that share a pass, and for each site and layer the activations they have and are moved to."""

    model: TransformerBridge
    pairs: tuple[TokenPair, ...]
    """Pairs of equal lengths whose activations change from one position on; axis `pair` of every tensor."""
    clean: ForwardPass
    corrupted: ForwardPass
    base: ForwardPass
    """The runs the site is changed in: clean when noising, corrupted when denoising.

    Of a contrast from `with_patched`, with its components patched.
    """
    direction: Direction
    """Which run that is."""
    source: Activations
    """a' for every site of the runs, one tensor a layer, at all positions of `base`.

    A position without a partner in the other prompt keeps its own activation.
    """
    first: int
    """The first position at which an activation changes."""
    backend: Backend
    readout: Readout
    """F of the pairs, by one metric or several: what is asked of a pair by each is one question."""
    engine: Engine
    """The backend's, for all of the pairs."""
    where: Bool[Tensor, "pair pos"] | None = None
    """The positions at which activations change; None: all."""
    named_in: Direction | None = None
    """Names of positions are of the prompt that is patched in this direction; None: in `direction`."""

    @property
    def gap(self) -> Float[Tensor, " question"]:
        """D = F(clean) - F(corrupted) of each question, whatever the direction and baseline."""
        return self.value(self.clean) - self.value(self.corrupted)

    def value(self, run: ForwardPass) -> Float[Tensor, " question"]:
        """F in one of the runs."""
        return run.logit_diff if run.logits is None else self.readout(run.logits)

    @property
    def least_gaps(self) -> list[float]:
        """The absolute gap, in F's unit, below which each question has no scores.

        The logit difference has a zero to which its size can be compared; of other metrics `min_gap` alone counts.
        """
        return [
            min_scored_gap(self.pairs[pair].min_gap, clean if isinstance(metric, LogitDiff) else 0.0)
            for (pair, metric), clean in zip(self.questions, self.value(self.clean).tolist(), strict=True)
        ]

    @property
    def questions(self) -> list[tuple[int, Metric]]:
        """The pair, by its index, and the metric of each question, in their order: see `metrics.Readout`."""
        return list(itertools.product(range(len(self.pairs)), self.readout.metrics))

    def by_question(self, values: Shaped[Tensor, "pair *any"]) -> Shaped[Tensor, "question *any"]:
        """What is known of each pair, for each of its questions."""
        n = len(self.readout.metrics)
        return values if n == 1 else values.repeat_interleave(n, 0)

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
        return {site: self.n_components(site) if site in self.base.activations else None for site in PLACES}

    def function(self, site: Site, layer: int) -> SiteFunction:
        """F as a function of this site's activation in this layer, at the positions from `first` on."""
        return self.engine.function(site, layer)

    def patches(self, site: Site, layer: int) -> PatchFunction:
        """F with single components of this site and layer moved from start to end."""
        return self.engine.patches(site, layer, *self.ends(site, layer))

    def direct(self, site: Site, layer: int) -> PatchFunction:
        """How F changes when what single components write moves from start to end, and all that comes after stays.

        Raises InputError where F is not computed from the weights.
        """
        if isinstance(self.engine, Hooks):
            raise InputError(
                f"model: got {self.model.cfg.model_name}, whose direct effects cannot be computed: "
                f"{self.backend.reason}. "
                "Use activation_patching, or another model."
            )
        return self.engine.direct(site, layer, *self.ends(site, layer))

    def ends(self, site: Site, layer: int) -> tuple[Tensor, Tensor]:
        """The path's start a (in the run) and end a' (its replacement), each `[pair, pos, ...]` from `first` on."""
        self.check(site)
        return self._from_first(self.base.activations[site][layer], self.source[site][layer])

    def inputs(self) -> tuple[Tensor, Tensor]:
        """What the first block reads in the run, and in the other one, each `[pair, pos, d_model]` from `first` on.

        Their straight path is the one of the tokens' embeddings. Without a partner a position stays.
        """
        noising = self.direction == "noising"
        other = self.corrupted if noising else self.clean
        run, moved = (replace(each, activations={"resid_pre": each.residual[:1]}) for each in (self.base, other))
        partners = [pair.alignment.clean if noising else pair.alignment.corrupted for pair in self.pairs]
        return self._from_first(run.residual[0], realign(moved, run, partners)["resid_pre"][0])

    def _from_first(self, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        """Both from `first` on; where nothing changes, the end is the start."""
        start, end = start[:, self.first :], end[:, self.first :]
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
        # Not behind a position that F is read at.
        first = max(self.first, min(*chosen, self.base.tokens.shape[1] - self.readout.n_read) if chosen else 0)
        engine = self.engine
        if first > self.first:
            engine = self.backend.engine(self.model, self.readout, self.base, first)
        return replace(self, where=where, first=first, engine=engine)

    def spans(self, positions: Positions) -> Spans | None:
        """The spans of the run that is patched; see `find_spans`."""
        return find_spans(positions, self.pairs, self.direction, self.named_in)

    def with_patched(
        self, components: Mapping[tuple[Site, int], Sequence[int]], held_where: Bool[Tensor, "pair pos"] | None = None
    ) -> "Contrast":
        """The contrast in which these components, by site and layer, are at a' already and stay so, at these positions.

        `held_where=None`: the contrast's own positions. It takes one more forward pass, which computes all that comes
        after them anew. Their sites must be among those asked for.
        """
        assert not self.base.held
        held_where = self.where if held_where is None else held_where

        for site, _ in components:
            self.check(site)
        held = {place: tuple(indices) for place, indices in components.items()}
        where = torch.ones_like(self.base.tokens, dtype=torch.bool) if held_where is None else held_where.clone()
        where[:, : self.first] = False
        moved = replace(self.base, activations=self.source, held=held, held_where=where)

        def put(site: Site, layer: int, activation: Tensor) -> Tensor:
            return hold(moved, site, layer, activation[:, None])[:, 0]

        with edit_sites(self.model, {place: partial(put, *place) for place in held}):
            base = record(
                self.model,
                self.base.tokens,
                self.pairs,
                name="patched",
                sites=tuple(self.base.activations),
                with_logits=self.base.logits is not None,
            )
        base = replace(base, held=held, held_where=held_where)
        return replace(self, base=base, engine=self.backend.engine(self.model, self.readout, base, self.first))

    def with_metrics(self, metrics: Sequence[Metric]) -> "Contrast":
        """The contrast with F by these metrics."""
        readout = replace(self.readout, metrics=tuple(metrics))
        return replace(self, readout=readout, engine=self.backend.engine(self.model, readout, self.base, self.first))

    def with_rules(self, rules: Rules) -> "Contrast":
        """The contrast whose gradients follow these rules. Raises InputError where F is not computed from the weights.

        See `Decoder.with_rules`.
        """
        if self.backend.decoder is None:
            raise InputError(
                f"methods: got relp or gim with {self.model.cfg.model_name}, wanted a model whose gradients can follow "
                f"their rules: {self.backend.reason}. Leave them out, or use another model."
            )
        backend = replace(self.backend, decoder=self.backend.decoder.with_rules(rules))
        return replace(self, backend=backend, engine=backend.engine(self.model, self.readout, self.base, self.first))

    def differs(self, site: Site, layer: int) -> Tensor:
        """True where a and a' of a component differ, `[pair, component]`; the effect of all others is 0."""
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

    def along(self, site: Site, few: list[int], alphas: Float[Tensor, " row"]) -> RowGradients:
        """The site's activation and dF/da of some of the pairs, by layer, where the first block's input has moved.

        It is a + alpha (a' - a), with the ends of `inputs`; one row an alpha.
        """
        start, end = (each[few][:, None] for each in self.inputs())
        shares = alphas.to(start)[:, None, None]
        return self._engine(few).along(site, start + shares * (end - start))

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
        kept = self.n_layers if gradients else 1
        if not self.readout.is_logit_diff:
            held = (len(self.readout.metrics) if gradients else 1) * self.readout.n_read
            numbers += 4 * held * cfg.d_vocab // kept  # once a row, in several copies
        elif whole:
            numbers += cfg.d_vocab
        size, device = numbers * run.residual[0].element_size(), run.tokens.device
        return adaptive_batch(size, kept, device, asked, memory_gib, recomputes=gradients and not whole)
