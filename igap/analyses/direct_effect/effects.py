"""What a component writes straight to the logits, beside its total effect.

    direct   = F(run, what c writes at the last position moved, every MLP and attention after it as in the run) - F(run)
    total    = F(c patched) - F(run): activation patching
    indirect = total - direct: through the layers after it

The final norm is computed anew: it lies on the path. Frozen at the run, direct effects would be linear in what is
written and sum over components, but they would be those of a model without that norm. Sources: path patching, Wang et
al. 2022 (arXiv 2211.00593), Goldowsky-Dill et al. 2023 (2304.05969).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64

from igap.attribution.activation_patching import patch_components
from igap.attribution.maps import Advance, AttributionMap, Kind, Progress, frame_of, table_of
from igap.attribution.over_pairs import attribute_pairs
from igap.attribution.spans import span_facts
from igap.components import Site
from igap.display import markup
from igap.engine.activations import Model
from igap.engine.contrast import Contrast
from igap.engine.open_pairs import OpenPairs, open_pairs
from igap.engine.positions import Positions, find_spans
from igap.errors import InputError
from igap.errors.arguments import Count, Positive, checks_arguments
from igap.inputs.prompts import PromptPair, TokenPair
from igap.metrics import AnyMetric
from igap.vocabulary import Direction

Writer = Literal["heads", "neurons", "attn_out", "mlp_out"]
"""The sites that write to the residual stream."""

_MOST_SAID = 5


@checks_arguments
@dataclass(frozen=True, eq=False)
class DirectEffects:
    """The direct and the total effect of every component of one site.

    Example:
        >>> effects = direct_effect(model, pair)
        >>> effects.to_frame().loc[[(0, 6), (3, 1)], ["direct", "total", "indirect"]].round(3).values.tolist()
        [[0.0, -0.169, -0.169], [-0.168, -0.168, 0.001]]
    """

    direct: AttributionMap
    total: AttributionMap
    """AP."""
    left_out: tuple[str, ...] = ()
    """Positions or spans that hold no position F is read at. What is written there reaches the logits through later
    attention alone: its direct effect is 0 by definition, and all of its total effect is indirect."""

    @property
    def names(self) -> list[str]:
        """All components, layer by layer; by positions each at every span but those left out."""
        return self.total.names

    @checks_arguments
    def indirect(self, kind: Kind = "effect") -> Float64[np.ndarray, " component"]:
        """Return total minus direct, in F's unit, or the same of scores: what goes through later layers.

        With the sign of effects: noising, below 0 (as a score) where these carry F from the component on, above 0 where
        they work against what it writes, as in self-repair.
        """
        total, direct = (getattr(each, kind).double().flatten().cpu().numpy() for each in (self.total, self.direct))
        return np.asarray(total - direct)

    def to_frame(self) -> pd.DataFrame:
        """Return one row a component: `name`; `direct`, `total`, `indirect` as scores; `effect_...` in F's unit."""
        frame = frame_of({"direct": self.direct, "total": self.total})
        frame.insert(3, "indirect", self.indirect("score"))
        frame["effect_indirect"] = self.indirect()
        return frame

    def summary(self) -> dict[str, float | int | str | None]:
        """Return `direct_effect/...`: mean |effect| of each kind, and the components with the largest."""
        flat: dict[str, float | int | str | None] = {}
        frame = self.to_frame()
        for kind in ("direct", "indirect"):
            size = frame[f"effect_{kind}"].abs().to_numpy()
            first = int(size.argmax())
            flat[f"direct_effect/{kind}/mean_abs"] = float(size.mean())
            flat[f"direct_effect/{kind}/first"] = self.names[first]
            flat[f"direct_effect/{kind}/first/effect"] = float(frame[f"effect_{kind}"].iloc[first])
        if self.total.spans is not None:
            flat["direct_effect/n_left_out"] = len(self.left_out)
        return flat

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return a row a component, by positions one for every span but those left out."""
        return {"direct_effect": table_of(self.to_frame())}

    def sentences(self) -> tuple[str, ...]:
        """Return the components with the largest direct and with the largest indirect effects."""
        prefix, unit = ("", "scores") if self.total.has_scores else ("effect_", self.total.unit)
        frame = self.to_frame()
        lines = []
        for kind, other in (("direct", "total"), ("indirect", "total")):
            order = np.argsort(-frame[f"effect_{kind}"].abs().to_numpy(), kind="stable")[:_MOST_SAID]
            few, names = frame.iloc[order], [self.names[index] for index in order]
            parts = [
                f"{name} {own:+.3f} of {whole:+.3f}"
                for name, own, whole in zip(names, few[prefix + kind], few[prefix + other], strict=True)
            ]
            lines.append(f"{self.total.site}, largest {kind} effects of the total, {unit}: {', '.join(parts)}")
        if self.left_out:
            n, named = len(self.left_out), ", ".join(self.left_out[:_MOST_SAID])
            lines.append(
                f"direct effects left out at {n} position{'s' if n > 1 else ''} or span{'s' if n > 1 else ''} ({named}"
                f"{', ...' if n > _MOST_SAID else ''}): F is not read there, so that they are 0, all effects indirect"
            )
        return tuple(lines)

    def __repr__(self) -> str:
        return f"DirectEffects({'; '.join(self.sentences())})"

    def _repr_html_(self) -> str:
        shown = self.direct.score if self.direct.has_scores else self.direct.effect
        values = shown.detach().double().cpu().numpy()
        cells = markup.heatmap(
            values, self.direct.site, unit=f"direct effect, {self.direct.label}", spans=self.direct.spans
        )
        return markup.block("direct effects", self.sentences(), cells)


@checks_arguments
def direct_effect(
    model: Model,
    pair: PromptPair | Sequence[PromptPair],
    site: Writer = "heads",
    *,
    direction: Direction = "noising",
    positions: Positions = "all",
    metric: AnyMetric = "logit_diff",
    batch_size: Count | None = None,
    memory_gib: Positive | None = None,
    on_progress: Progress | None = None,
) -> DirectEffects:
    """The effect of each component by its own path to the logits, exactly, beside its total effect.

    What the component writes to the residual stream at the last position moves; all attention and MLPs after it stay as
    they are in the run, its own block's MLP among them; norms between it and the logits are computed.

    Args:
        model: A TransformerBridge, for example of `load_model`; it comes back unchanged.
        pair: The prompt pair, or several, whose mean is returned.
        site: "heads" (default), "neurons", or what a layer writes: "attn_out", "mlp_out".
        direction: "noising" (default) patches the clean run; "denoising" the corrupted run, towards the clean one.
        positions: Which positions change, as `activation_patching` takes them; "all" (default): at once. Spans that
            hold no position F is read at are left out: see `DirectEffects.left_out`.
        metric: F, default "logit_diff"; see `activation_patching`.
        batch_size: Rows of a pass. None (default): as many as fit.
        memory_gib: GiB of a pass beyond the model. None (default): 2.
        on_progress: Called with (components done, components in all), of total and then of direct effects.

    Returns:
        Both maps, and their difference.

    Raises:
        InputError: An argument is invalid, the pair does not fit the model, F is read at none of the positions, or F is
            not computed from the model's weights: an architecture that the engine does not know, bfloat16, or hooks on
            the model.

    Example:
        >>> effects = direct_effect(model, pair)
        >>> round(effects.direct.effect[3, 1].item(), 3), round(effects.total.effect[3, 1].item(), 3)
        (-1.758, -1.751)

    Source: Wang et al. 2022 (arXiv 2211.00593), path patching.
    """
    budget: Any = {"batch_size": batch_size, "memory_gib": memory_gib}

    def patch(contrast: Contrast, advance: Advance) -> list[AttributionMap]:
        return patch_components(contrast, site, advance, positions=positions, **budget)

    with open_pairs(model, pair, sites=(site,), metric=metric) as opened:
        read_spans(positions, opened.tokens, direction, item="positions")
        about: Any = {"direction": direction, "positions": positions, "on_progress": on_progress}
        return direct_effects(opened, attribute_pairs(patch, opened, site, **about), **about, **budget)


def direct_effects(
    opened: OpenPairs,
    total: AttributionMap,
    *,
    direction: Direction,
    positions: Positions = "all",
    batch_size: int | None = None,
    memory_gib: float | None = None,
    on_progress: Progress | None = None,
) -> DirectEffects:
    """The direct effects of open pairs beside AP of these positions; see `direct_effect`."""
    kept = read_spans(positions, opened.tokens, direction, item="positions")

    def patch_directly(contrast: Contrast, advance: Advance) -> list[AttributionMap]:
        return _patch_directly(contrast, total.site, advance, positions, kept, batch_size, memory_gib)

    about: Any = {"direction": direction, "positions": positions}
    direct = attribute_pairs(patch_directly, opened, total.site, on_progress, **about)
    left_out = tuple(span for place, span in enumerate(total.spans or ()) if place not in kept)
    return DirectEffects(direct, _at_spans(total, kept), left_out)


def read_spans(positions: Positions, pairs: Sequence[TokenPair], direction: Direction, *, item: str) -> list[int]:
    """The spans, by their places, that hold a position at which F is read, in any of the pairs; empty without spans.

    Raises InputError, naming `item`, where there are spans and none does.
    """
    kept: set[int] = set()
    for pair in pairs:
        spans = find_spans(positions, [pair], direction)
        if spans is None:
            return []
        kept |= {place for place, mask in enumerate(spans.masks) if mask[0, -pair.n_read :].any()}
    if not kept:
        got = positions if isinstance(positions, str) else ", ".join(positions)
        raise InputError(
            f"{item}: got {got}, none of which holds a position that F is read at, wanted one that does: elsewhere "
            "direct effects are 0 by definition. Use positions=last."
        )
    return sorted(kept)


def _at_spans(total: AttributionMap, kept: Sequence[int]) -> AttributionMap:
    """The map at these of its spans."""
    if total.spans is None:
        return total
    return replace(
        total,
        effect=total.effect[:, list(kept)],
        spans=tuple(total.spans[place] for place in kept),
        where=None if total.where is None else tuple(total.where[place] for place in kept),
        covers=False,
        pairs=tuple(_at_spans(each, kept) for each in total.pairs),
    )


def _patch_directly(
    contrast: Contrast,
    site: Site,
    advance: Advance,
    positions: Positions,
    kept: Sequence[int],
    batch_size: int | None,
    memory_gib: float | None,
) -> list[AttributionMap]:
    """The direct effects of each pair of a contrast, at the spans that are kept."""
    rows, spans = contrast.rows(batch_size, memory_gib, gradients=False), contrast.spans(positions)
    n_pairs, width = len(contrast.pairs), contrast.n_components(site)
    parts, together = [contrast], None
    if spans is not None:
        masks = tuple(spans.masks[place] for place in kept)
        spans = replace(spans, names=tuple(spans.names[place] for place in kept), masks=masks)
        parts = [*([contrast] if spans.has_axis else []), *(contrast.at(mask) for mask in masks)]
    effect = contrast.gap.new_zeros(n_pairs, contrast.n_layers, len(parts), width)
    with torch.no_grad():
        for layer in range(contrast.n_layers):
            for place, part in enumerate(parts):
                start, end = part.ends(site, layer)
                moved = (start != end)[:, -part.readout.n_read :].any(1)
                moved = moved.any(-1) if start.ndim == 4 else moved
                for items, change in rows.each(part.direct(site, layer), moved.any(0).nonzero().flatten(), n_pairs):
                    effect[:, layer, place, items] = change
                effect[:, layer, place].masked_fill_(~moved, 0)
            advance((layer + 1) * width)
    effect = effect.cpu()
    if spans is not None and spans.has_axis:
        together, effect = effect[:, :, 0], effect[:, :, 1:]
    else:
        effect = effect[:, :, 0]
    return [
        AttributionMap(
            "direct", site, effect[index], gap=gap, min_gap=least, **span_facts(spans, together, contrast, index)
        )
        for index, (gap, least) in enumerate(zip(contrast.gap.tolist(), contrast.least_gaps, strict=True))
    ]
