"""Which gate two components form: both patched together, in both directions.

    I(c, d) = F(c and d patched) - F(c patched) - F(d patched) + F(run)

Where F is c AND d, one of them is enough to break it, and both are needed to restore it; where it is c OR d, the other
way round. Of a function of c and d alone I is the same in both directions; in a model the run around them differs.
Where all that c does goes through d, I is minus the effect of c in both, which has two signs: `mixed`.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from igap.attribution.maps import scores_exist
from igap.components import Site, component_name
from igap.engine.batching import AdaptiveBatch
from igap.engine.contrast import Contrast
from igap.engine.open_pairs import OpenPairs
from igap.engine.positions import Positions, Spans
from igap.vocabulary import Direction

Place = tuple[int, ...]
"""A layer, by positions a span, and a component."""

DIRECTIONS: tuple[Direction, ...] = ("noising", "denoising")


@dataclass(frozen=True, eq=False)
class Gates:
    """Pairs of components that were patched together."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    together: Float64[np.ndarray, "direction gate"]
    """F with both patched minus F(run), in F's unit; noising, then denoising. Of several prompt pairs the mean."""
    interaction: Float64[np.ndarray, "direction gate"]
    """I, in F's unit."""
    together_score: Float64[np.ndarray, "direction gate"]
    """`together` / gap; NaN where no prompt pair has scores."""
    interaction_score: Float64[np.ndarray, "direction gate"]
    """I / gap."""
    high: float
    """|I / gap| from which on two components form a gate."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """`or`, `and`, `none` or `mixed`, pair by pair; empty texts where there are no scores.

        By the mean over both directions of I / gap, in the sign in which the two together carry F: `or` where it is at
        most -high, `and` where it is at least high. `mixed` where the directions have other signs and one is high.
        """
        carried = self.together_score[1] - self.together_score[0]
        signed = self.interaction_score * np.where(carried < 0, -1, 1)
        return tuple(map(self._kind, *signed))

    def _kind(self, noising: float, denoising: float) -> str:
        if not np.isfinite([noising, denoising]).all():
            return ""
        if noising * denoising < 0 and max(abs(noising), abs(denoising)) >= self.high:
            return "mixed"
        mean = (noising + denoising) / 2
        return "none" if abs(mean) < self.high else "or" if mean < 0 else "and"

    def names_of(self, kind: str) -> list[str]:
        """The pairs of one kind, as `0.3+2.1`."""
        each = zip(self.first, self.second, self.kinds, strict=True)
        return [f"{first}+{second}" for first, second, own in each if own == kind]

    def to_frame(self) -> pd.DataFrame:
        """Return one row a pair: `first`, `second`, `gate`; `together_...` and `interaction_...` as scores and effects.

        Effects, with `effect_` before their names, are in F's unit.
        """
        columns: dict[str, object] = {"first": self.first, "second": self.second, "gate": self.kinds}
        for prefix, parts in (
            ("", {"together": self.together_score, "interaction": self.interaction_score}),
            ("effect_", {"together": self.together, "interaction": self.interaction}),
        ):
            for name, values in parts.items():
                columns |= {f"{prefix}{name}_{where}": values[i] for i, where in enumerate(DIRECTIONS)}
        return pd.DataFrame(columns)


def find_gates(
    opened: OpenPairs,
    site: Site,
    places: Sequence[Place],
    high: float,
    *,
    positions: Positions = "all",
    named_in: Direction | None = None,
    batch_size: int | None = None,
    memory_gib: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Gates:
    """Every two of these components, patched together in both directions: a forward pass more a component.

    `positions` are those at which they are patched, of the prompt that the direction `named_in` patches.
    """
    places = sorted(places)
    two = list(itertools.combinations(range(len(places)), 2))
    alone, given = (
        torch.zeros(2, len(opened.pairs), len(places), *more, dtype=torch.float64) for more in ((), (len(places),))
    )
    gaps, least = torch.zeros(2, len(opened.pairs), dtype=torch.float64)
    with torch.no_grad():
        for side, direction in enumerate(DIRECTIONS):
            for indices, each in opened.contrasts(direction=direction):
                contrast = replace(each, named_in=named_in)
                spans = contrast.spans(positions)
                rows, few = contrast.rows(batch_size, memory_gib, gradients=False), list(indices)
                gaps[few], least[few] = contrast.gap.cpu().to(gaps), torch.tensor(contrast.least_gaps).to(gaps)
                alone[side, few] = _effects(contrast, site, places, spans, rows).to(alone)
                for i, place in enumerate(places[:-1]):
                    patched = contrast.with_patched({(site, place[0]): (place[-1],)}, _where(place, spans))
                    given[side, few, i, i + 1 :] = _effects(patched, site, places[i + 1 :], spans, rows).to(given)
                    if on_progress:
                        on_progress(side * len(places) + i + 1, 2 * len(places))
    first, second = ([pair[i] for pair in two] for i in range(2))
    # What the later one does when the earlier one is patched, plus what that one does alone.
    together = given[:, :, first, second] + alone[:, :, first]
    interaction = given[:, :, first, second] - alone[:, :, second]
    scored = torch.tensor([scores_exist(*each) for each in zip(gaps.tolist(), least.tolist(), strict=True)])
    gap = torch.where(scored, gaps, torch.nan)[:, None]
    at = [f" at {name}" for name in spans.names] if spans is not None and spans.has_axis else [""]
    names = [component_name(site, layer, index) + at[sum(span)] for layer, *span, index in places]
    parts: Mapping[str, Tensor] = {
        "together": together.mean(1),
        "interaction": interaction.mean(1),
        "together_score": (together / gap).nanmean(1),
        "interaction_score": (interaction / gap).nanmean(1),
    }
    return Gates(
        first=tuple(names[i] for i in first),
        second=tuple(names[i] for i in second),
        **{name: values.numpy() for name, values in parts.items()},
        high=high,
    )


def _effects(
    contrast: Contrast, site: Site, places: Sequence[Place], spans: Spans | None, rows: AdaptiveBatch
) -> Float[Tensor, "pair place"]:
    """F with each of these components patched, alone, minus F without, in F's unit."""
    effects = contrast.gap.new_zeros(len(contrast.pairs), len(places))
    for layer, *span in sorted({place[:-1] for place in places}):
        here = [i for i, place in enumerate(places) if place[:-1] == (layer, *span)]
        where = _where(places[here[0]], spans)
        question = contrast if where is None else contrast.at(where)
        components = torch.tensor([places[i][-1] for i in here], device=effects.device)
        unpatched = question.function(site, layer)(question.ends(site, layer)[0][:, None])
        moved, done = question.differs(site, layer)[:, components], 0
        for items, patched in rows.each(question.patches(site, layer), components, len(contrast.pairs)):
            effects[:, here[done : done + len(items)]] = patched - unpatched
            done += len(items)
        effects[:, here] = effects[:, here].masked_fill(~moved, 0)
    return effects.cpu()


def _where(place: Place, spans: Spans | None) -> Bool[Tensor, "pair pos"] | None:
    """The positions at which a component is patched; None: all."""
    return None if spans is None else spans.masks[place[1] if spans.has_axis else 0]
