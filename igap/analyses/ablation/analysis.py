"""The ablations that a run asks for, and how far the change in performance goes with IG, AP and their difference."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from igap.analyses.ablation.ablate import AblationEffect, Ablations, ablate_kinds
from igap.analyses.base import Compared
from igap.attribution.maps import Progress
from igap.components import component_names, parse_component
from igap.config import AblationConfig
from igap.errors import InputError
from igap.inputs.labelled_prompts import Prompt, generated, read_prompts
from igap.statistics.comparison import Comparison, compare_values

DEFAULT_N = 500
"""Generated prompts where neither a number nor a file is given."""

FEW = 30
"""Fewer components than this prove nothing about a correlation."""

AGAINST = ("ig", "ap", "ap - ig")
"""What the change is set against: scores, or effects in logits where scores are missing."""


@dataclass(frozen=True, eq=False)
class AblationStudy:
    """Ablations of the same components, by kind."""

    kinds: Mapping[str, Ablations]
    """Empty where there is no outlier to ablate."""
    scores: Mapping[str, tuple[float, ...]]
    """AGAINST to the number of each component, in the order of `Ablations.single`."""
    unit: str
    """Of the scores: `score` or `logits`."""
    processing: str
    """Processed or raw weights: zero ablation of heads differs between them."""

    def relation(self, kind: str, against: str) -> Comparison:
        """Correlation, over the ablated components, of what `against` says with the change in the share correct."""
        change = [one.change for one in self.kinds[kind].single]
        return compare_values(np.array([self.scores[against]]), np.array([change]), names=(against.upper(), "change"))

    def summary(self) -> dict[str, float | int | str | None]:
        """`ablation/KIND/...`: shares, changes and correlations."""
        flat: dict[str, float | int | str | None] = {"ablation/n_components": len(self.scores["ap"])}
        for kind, found in self.kinds.items():
            name = f"ablation/{kind}"
            flat |= {f"{name}/n_prompts": found.n_prompts, f"{name}/share": found.accuracy}
            flat |= {f"{name}/logit_diff": found.logit_diff, f"{name}/generated": found.generated}
            for one in _all(found):
                flat |= {f"{name}/{one.name}/change": one.change, f"{name}/{one.name}/p": one.p}
            for against in AGAINST:
                relation = self.relation(kind, against)
                for statistic in ("pearson", "spearman"):
                    for end in ("", "_low", "_high"):
                        number, key = getattr(relation, statistic + end), f"{name}/{statistic}{end}/{against}"
                        flat[key] = number if np.isfinite(number) else None
                        if not np.isfinite(number):
                            flat[f"{key}/reason"] = relation.reasons.get(statistic + end, "not defined")
        return flat

    def tables(self) -> dict[str, pd.DataFrame]:
        """ablation.csv: one row a kind and set of components, the whole model first."""
        return {"ablation": pd.DataFrame(list(self._rows()))}

    def _rows(self) -> Iterator[dict[str, Any]]:
        for kind, found in self.kinds.items():
            whole = {"share": found.accuracy, "logit_diff": found.logit_diff, "generated": found.generated}
            yield {"kind": kind, "name": "none", "components": "", "n_prompts": found.n_prompts, **whole}
            for one in _all(found):
                row: dict[str, Any] = {"kind": kind, "name": one.name, "components": " ".join(one.components)}
                row |= {"n_prompts": found.n_prompts, "share": one.accuracy}
                for column in (
                    *("logit_diff", "generated", "change", "change_low", "change_high", "p"),
                    *("logit_diff_change", "logit_diff_low", "logit_diff_high"),
                ):
                    row[column] = getattr(one, column)
                if one in found.single:
                    index = found.single.index(one)
                    row |= {against: self.scores[against][index] for against in AGAINST}
                yield row

    def sentences(self) -> tuple[str, ...]:
        """Of each kind the whole model, each component, all together beside the controls, and the correlations."""
        if not self.kinds:
            return ("ablation: nothing to ablate, because no head is an outlier; ablation.components names others",)
        said = []
        for kind, found in self.kinds.items():
            said.append(
                f"{kind} ablation, {found.n_prompts} prompts, {self.processing} weights: {found.accuracy:.1%} correct "
                "with nothing ablated"
                + ("" if found.logit_diff is None else f", logit difference {found.logit_diff:+.3f}")
            )
            said += [f"  without {_said(one)}" for one in (*found.single, found.together) if one is not None]
            if found.controls:
                shares = [one.accuracy for one in found.controls]
                said.append(
                    f"  without as many random others, {len(shares)} times: {np.mean(shares):.1%} correct on average "
                    f"({min(shares):.1%} to {max(shares):.1%})"
                )
            said.append(self._correlated(kind, len(found.single)))
        return tuple(said)

    def _correlated(self, kind: str, n: int) -> str:
        parts = []
        for against in AGAINST:
            found = self.relation(kind, against)
            r = f"{found.pearson:+.2f}" if np.isfinite(found.pearson) else "undefined"
            if np.isfinite(found.pearson_low):
                r += f" [{found.pearson_low:+.2f}, {found.pearson_high:+.2f}]"
            parts.append(f"{against.upper()} {r}")
        few = f"; {n} points prove nothing" if n < FEW else ""
        return f"  r of the change with {', '.join(parts)} (n = {n}{few})"


def _said(one: AblationEffect) -> str:
    logits = ""
    if one.logit_diff_change is not None:
        logits = (
            f"; logit difference {one.logit_diff_change:+.3f} [{one.logit_diff_low:+.3f}, {one.logit_diff_high:+.3f}]"
        )
    return (
        f"{one.name}: {one.change:+.1%} [{one.change_low:+.1%}, {one.change_high:+.1%}], McNemar p {one.p:.2g}{logits}"
    )


def _all(found: Ablations) -> tuple[AblationEffect, ...]:
    return (*found.single, *([found.together] if found.together else []), *found.controls)


def prompts_of(asked: AblationConfig, tokenizer: Any, bos: str) -> list[Prompt]:
    """The prompts that performance is measured on. Raises InputError where there are fewer than asked for."""
    made = generated(asked.n or DEFAULT_N, asked.seed, tokenizer) if asked.file is None else read_prompts(asked.file)
    if not made:
        raise InputError(
            f"ablation.n: got {asked.n}, wanted more: no two of so few generated prompts have one token length. Try "
            "ablation.n=100."
        )
    prompts = [replace(prompt, bos=bos) for prompt in made]
    if asked.file is not None and asked.n is not None and asked.n > len(prompts):
        raise InputError(
            f"ablation.n: got {asked.n}, but {asked.file} holds {len(prompts)} prompts. Use fewer, or leave ablation.n "
            "out to take all."
        )
    return prompts[: asked.n]


def chosen(compared: Compared) -> Sequence[str]:
    """Names of the components to ablate: the outlier heads, the top ones of a method, or those named."""
    asked = compared.config.ablation
    if asked.components == "outliers":
        return compared.outliers("heads")
    if asked.components == "top":
        effect = compared.maps["heads"][asked.by].effect
        names = component_names("heads", *effect.shape)
        order = effect.abs().flatten().argsort(descending=True, stable=True)
        return [names[int(i)] for i in order[: asked.top]]
    return asked.components.split()


def follow_up(compared: Compared, on_progress: Progress | None) -> AblationStudy:
    """The ablations of every kind asked for."""
    asked = compared.config.ablation
    names = list(chosen(compared))
    places = [parse_component(name) for name in names]
    ig, ap = (
        tuple(float(compared.values(site, method)[layer, index]) for site, layer, index in places)
        for method in ("ig", "ap")
    )
    scores = dict(zip(AGAINST, (ig, ap, tuple(y - x for x, y in zip(ig, ap, strict=True))), strict=True))
    kinds = [kind for kind in dict.fromkeys((asked.kind, *asked.also)) if kind != "none"]
    found = (
        {}
        if not names
        else ablate_kinds(
            compared.model,
            prompts_of(asked, compared.model.tokenizer, compared.config.prompts.bos),
            names,
            kinds,
            reference_n=asked.reference_n,
            seed=asked.seed,
            controls=asked.controls,
            generate=asked.generate,
            batch_size=compared.config.batch_size,
            memory_gib=compared.config.memory_gib,
            on_progress=on_progress,
        )
    )
    unit = next(iter(compared.comparisons.values())).unit
    return AblationStudy(found, scores, unit, compared.config.model.processing)
