"""What a component writes straight to the logits, beside its total effect.

    direct   = F(run, what c writes at the last position moved, every MLP and attention after it as in the run) - F(run)
    total    = F(c patched) - F(run): activation patching
    indirect = total - direct: through the layers after it

The final norm is computed anew: it lies on the path. Frozen at the run, direct effects would be linear in what is
written and sum over components, but they would be those of a model without that norm. Sources: path patching, Wang et
al. 2022 (arXiv 2211.00593), Goldowsky-Dill et al. 2023 (2304.05969).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64

from igap import markup
from igap.arguments import Count, Positive, checks_arguments
from igap.attribution.activation_patching import patch_components
from igap.attribution.maps import Advance, AttributionMap, Kind, Progress, frame_of, ignore
from igap.attribution.over_pairs import attribute_pairs
from igap.components import Site, component_names
from igap.engine.activations import Model
from igap.engine.contrast import Contrast
from igap.engine.open_pairs import open_pairs
from igap.inputs.prompts import PromptPair
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

    @property
    def names(self) -> list[str]:
        """All components, layer by layer."""
        return component_names(self.total.site, *self.total.effect.shape)

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
        return flat

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return a row a component."""
        return {"direct_effect": self.to_frame().reset_index(drop=True)}

    def sentences(self) -> tuple[str, ...]:
        """Return the components with the largest direct and with the largest indirect effects."""
        prefix, unit = ("", "scores") if self.total.has_scores else ("effect_", self.total.unit)
        frame = self.to_frame()
        lines = []
        for kind, other in (("direct", "total"), ("indirect", "total")):
            order = np.argsort(-frame[f"effect_{kind}"].abs().to_numpy(), kind="stable")[:_MOST_SAID]
            few = frame.iloc[order]
            parts = [
                f"{name} {own:+.3f} of {whole:+.3f}"
                for name, own, whole in zip(few["name"], few[prefix + kind], few[prefix + other], strict=True)
            ]
            lines.append(f"{self.total.site}, largest {kind} effects of the total, {unit}: {', '.join(parts)}")
        return tuple(lines)

    def __repr__(self) -> str:
        return f"DirectEffects({'; '.join(self.sentences())})"

    def _repr_html_(self) -> str:
        shown = self.direct.score if self.direct.has_scores else self.direct.effect
        values = shown.detach().double().cpu().numpy()
        cells = markup.heatmap(values, self.direct.site, unit=f"direct effect, {self.direct.label}")
        return markup.block("direct effects", self.sentences(), cells)


@checks_arguments
def direct_effect(
    model: Model,
    pair: PromptPair | Sequence[PromptPair],
    site: Writer = "heads",
    *,
    direction: Direction = "noising",
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
        metric: F, default "logit_diff"; see `activation_patching`.
        batch_size: Rows of a pass. None (default): as many as fit.
        memory_gib: GiB of a pass beyond the model. None (default): 2.
        on_progress: Called with (components done, components in all), of total and then of direct effects.

    Returns:
        Both maps, and their difference.

    Raises:
        InputError: An argument is invalid, the pair does not fit the model, or F is not computed from the model's
            weights: an architecture that the engine does not know, bfloat16, or hooks on the model.

    Example:
        >>> effects = direct_effect(model, pair)
        >>> round(effects.direct.effect[3, 1].item(), 3), round(effects.total.effect[3, 1].item(), 3)
        (-1.758, -1.751)

    Source: Wang et al. 2022 (arXiv 2211.00593), path patching.
    """
    budget: Any = {"batch_size": batch_size, "memory_gib": memory_gib}

    def patch(contrast: Contrast, advance: Advance) -> list[AttributionMap]:
        return patch_components(contrast, site, advance, **budget)

    def patch_directly(contrast: Contrast, advance: Advance) -> list[AttributionMap]:
        return direct_effects(contrast, site, advance, **budget)

    with open_pairs(model, pair, sites=(site,), metric=metric) as opened:
        direct = attribute_pairs(patch_directly, opened, site, on_progress, direction=direction)
        return DirectEffects(direct, attribute_pairs(patch, opened, site, on_progress, direction=direction))


def direct_effects(
    contrast: Contrast,
    site: Site,
    advance: Advance = ignore,
    *,
    batch_size: int | None = None,
    memory_gib: float | None = None,
) -> list[AttributionMap]:
    """The direct effects of each pair of a contrast; see `direct_effect`. 0 where F's positions do not change."""
    rows = contrast.rows(batch_size, memory_gib, gradients=False)
    n_pairs, width = len(contrast.pairs), contrast.n_components(site)
    effect = contrast.gap.new_zeros(n_pairs, contrast.n_layers, width)
    with torch.no_grad():
        for layer in range(contrast.n_layers):
            start, end = contrast.ends(site, layer)
            moved = (start != end)[:, -contrast.readout.n_read :].any(1)
            moved = moved.any(-1) if start.ndim == 4 else moved
            function = contrast.direct(site, layer)
            for items, change in rows.each(function, moved.any(0).nonzero().flatten(), n_pairs):
                effect[:, layer, items] = change
            effect[:, layer].masked_fill_(~moved, 0)
            advance((layer + 1) * width)
    return [
        AttributionMap("direct", site, effect[index].cpu(), gap=gap, min_gap=least)
        for index, (gap, least) in enumerate(zip(contrast.gap.tolist(), contrast.least_gaps, strict=True))
    ]
