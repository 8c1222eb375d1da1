"""Ablations of the same components in several ways, and how accuracy's change goes with IG, AP and their difference."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from igap.analyses.ablation.results import AblationEffect, Ablations, change_of_metric
from igap.statistics.comparison import Comparison, compare_values
from igap.statistics.units import Unit

FEW = 30
"""Fewer components than this prove nothing about a correlation."""

AGAINST = ("ig", "ap", "ap - ig")
"""What the change is set against: scores, or effects in logits where scores are missing."""

_REASONS = {"logit_diff": "the prompts have no distractor", "generated": "ablation.generate=false"}
"""Why a number that is not measured is missing."""


@dataclass(frozen=True, eq=False)
class AblationsByKind:
    """Ablations of the same components, by kind."""

    kinds: Mapping[str, Ablations]
    """Empty where there is no outlier to ablate."""
    scores: Mapping[str, tuple[float, ...]]
    """AGAINST to the number of each component, in the order of `Ablations.single`; of a set, which has none, NaN."""
    unit: Unit
    """Unit of the scores: `score` or `logits`."""
    processing: str
    """Processed or raw weights: zero ablation of heads differs between them."""

    def components(self, kind: str) -> list[int]:
        """Return the places in `Ablations.single` that are one component, and no set."""
        return [place for place, each in enumerate(self.kinds[kind].single) if len(each.components) == 1]

    def relation(self, kind: str, against: str) -> Comparison | None:
        """Return how, over the ablated components, `against` correlates with the change in the share correct.

        None where only sets were ablated.
        """
        places, single = self.components(kind), self.kinds[kind].single
        if not places:
            return None
        score, change = [self.scores[against][place] for place in places], [single[place].change for place in places]
        return compare_values(np.array([score]), np.array([change]), names=(against.upper(), "change"))

    def summary(self) -> dict[str, float | int | str | None]:
        """Return `ablation/KIND/...`: shares, changes and correlations."""
        flat: dict[str, float | int | str | None] = {"ablation/n_components": len(self.scores["ap"])}
        for kind, ablations in self.kinds.items():
            name = f"ablation/{kind}"
            flat |= {f"{name}/n_prompts": ablations.n_prompts, f"{name}/share": ablations.accuracy}
            flat |= {f"{name}/logit_diff": ablations.logit_diff, f"{name}/generated": ablations.generated}
            flat |= {f"{name}/{key}/reason": why for key, why in _REASONS.items() if getattr(ablations, key) is None}
            if ablations.value is not None:
                flat |= {f"{name}/value": ablations.value}
                flat |= {f"{name}/{each.name}/value_change": each.value_change for each in ablations.effects}
            for each in ablations.effects:
                flat |= {f"{name}/{each.name}/change": each.change, f"{name}/{each.name}/p": each.p}
            for against in AGAINST:
                relation = self.relation(kind, against)
                for statistic in ("pearson", "spearman"):
                    for end in ("", "_low", "_high"):
                        key = f"{name}/{statistic}{end}/{against}"
                        number = np.nan if relation is None else getattr(relation, statistic + end)
                        flat[key] = number if np.isfinite(number) else None
                        if relation is None:
                            flat[f"{key}/reason"] = "only sets were ablated"
                        elif not np.isfinite(number):
                            flat[f"{key}/reason"] = relation.reasons.get(statistic + end, "not defined")
        return flat

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return ablation.csv: one row a kind and set of components, the whole model first."""
        return {"ablation": pd.DataFrame(list(self._rows()))}

    def _rows(self) -> Iterator[dict[str, Any]]:
        for ablations in self.kinds.values():
            whole, *rows = ablations.rows()
            yield whole
            for index, row in enumerate(rows):
                alone = index < len(ablations.single)
                yield row | ({against: self.scores[against][index] for against in AGAINST} if alone else {})

    def sentences(self) -> tuple[str, ...]:
        """Return, a kind after the other: the whole model, each component, all together, controls, correlations.

        Changes of the share correct are in percentage points.
        """
        if not self.kinds:
            return ("ablation: nothing to ablate, because no head is an outlier; ablation.components names others",)
        lines = []
        for kind, ablations in self.kinds.items():
            lines.append(
                f"{kind} ablation, {ablations.n_prompts} prompts, {self.processing} weights: "
                f"{ablations.accuracy:.1%} correct with nothing ablated"
                + ("" if ablations.logit_diff is None else f", logit difference {ablations.logit_diff:+.3f}")
                + ("" if ablations.value is None else f", {ablations.metric} {ablations.value:.4g}")
            )
            lines += [
                f"  without {_sentence(each)}{change_of_metric(ablations, each)}"
                for each in (*ablations.single, ablations.together)
                if each is not None
            ]
            if ablations.controls:
                shares = [each.accuracy for each in ablations.controls]
                lines.append(
                    f"  without as many random others, {len(shares)} times: {np.mean(shares):.1%} correct on average "
                    f"({min(shares):.1%} to {max(shares):.1%})"
                )
            if alone := self.components(kind):
                lines.append(self._correlations(kind, len(alone)))
        return tuple(lines)

    def _correlations(self, kind: str, n: int) -> str:
        parts = []
        for against in AGAINST:
            relation = self.relation(kind, against)
            assert relation is not None
            r = f"{relation.pearson:+.2f}" if np.isfinite(relation.pearson) else "undefined"
            if np.isfinite(relation.pearson_low):
                r += f" [{relation.pearson_low:+.2f}, {relation.pearson_high:+.2f}]"
            parts.append(f"{against.upper()} {r}")
        few = f"; {n} points prove nothing" if n < FEW else ""
        return f"  r of the change with {', '.join(parts)} (n = {n}{few})"


def _sentence(effect: AblationEffect) -> str:
    points = _with_interval(100 * effect.change, 100 * effect.change_low, 100 * effect.change_high, "+.1f", " points")
    text = f"{effect.name}: {points}, McNemar p {effect.p:.2g}"
    if effect.logit_diff_change is not None:
        change = _with_interval(effect.logit_diff_change, effect.logit_diff_low, effect.logit_diff_high, "+.3f", "")
        text += f"; logit difference {change}"
    return text


def _with_interval(value: float, low: float | None, high: float | None, form: str, unit: str) -> str:
    """Return a number, its unit and its interval, which one prompt does not have."""
    interval = "" if low is None or not np.isfinite(low) else f" [{low:{form}}, {high:{form}}]"
    return f"{value:{form}}{unit}{interval}"
