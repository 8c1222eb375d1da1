"""What `ablate` returns: what a model still does without components, and how that is shown."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from igap.analyses.ablation.accuracy import PromptOutcomes
from igap.display import markup
from igap.display.binding import Axes, draw
from igap.errors.arguments import checks_arguments
from igap.vocabulary import AblationKind

_LATER = {"later": True}


@dataclass(frozen=True, eq=False)
class AblationEffect:
    """What a model still does without some components, and the change from the whole model on the same prompts."""

    name: str
    """The component's name, at a span `9.6 at S2`, `all`, or `control N`."""
    components: tuple[str, ...]
    outcomes: PromptOutcomes
    accuracy: float
    """Share of prompts whose greedy next token is the answer, [0, 1]."""
    change: float
    """`accuracy` minus that of the whole model."""
    change_low: float
    """Lower end of the paired 95% bootstrap interval of `change`, over prompts."""
    change_high: float
    p: float
    """McNemar's exact p, two-sided: how likely chance is to split the changed outcomes so unevenly."""
    logit_diff: float | None
    """Mean of logit[answer] - logit[distractor], in logits; None where the prompts have no distractor."""
    logit_diff_change: float | None
    logit_diff_low: float | None
    """Lower end of the paired 95% bootstrap interval of `logit_diff_change`."""
    logit_diff_high: float | None
    generated: float | None
    """Share of prompts that are correct by the notebook's criterion, [0, 1]; None where it was not asked for."""
    value: float | None = field(default=None, metadata=_LATER)
    """Mean of F, in its unit; None where F is the logit difference."""
    value_change: float | None = field(default=None, metadata=_LATER)
    value_low: float | None = field(default=None, metadata=_LATER)
    """Lower end of the paired 95% bootstrap interval of `value_change`."""
    value_high: float | None = field(default=None, metadata=_LATER)


@checks_arguments
@dataclass(frozen=True, eq=False)
class Ablations:
    """One kind of ablation of one list of components, as `ablate` returns it.

    Example:
        >>> prompts = [Prompt(pair.clean, " John", " Mary"), Prompt(pair.corrupted, " Mary", " John")]
        >>> ablations = ablate(model, prompts, ["0.3", "2.1"], controls=2)
        >>> ablations.n_prompts, [single.name for single in ablations.single], len(ablations.controls)
        (2, ['0.3', '2.1'], 2)
    """

    kind: AblationKind
    n_prompts: int
    unablated: PromptOutcomes
    accuracy: float
    """Share of prompts whose greedy next token is the answer, [0, 1], in the whole model."""
    accuracy_low: float
    """Lower end of its 95% bootstrap interval, over prompts."""
    accuracy_high: float
    logit_diff: float | None
    """Mean logit difference of the whole model, in logits."""
    generated: float | None
    single: tuple[AblationEffect, ...]
    """Each component alone."""
    together: AblationEffect | None
    """All of them; None for one component."""
    controls: tuple[AblationEffect, ...]
    """As many others of the same sites at random, all together, repeated; empty where the model has too few others."""
    metric: str = field(default="logit_diff", metadata=_LATER)
    """F."""
    unit: str = field(default="logits", metadata=_LATER)
    """Its unit."""
    value: float | None = field(default=None, metadata=_LATER)
    """Mean of F of the whole model; None where F is the logit difference."""

    @property
    def effects(self) -> tuple[AblationEffect, ...]:
        """The effects of each component, then of all together, then of the controls."""
        return (*self.single, *([self.together] if self.together else []), *self.controls)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of a run's `ablation.csv`, by column: the whole model, then `effects`."""
        whole = {"share": self.accuracy, "logit_diff": self.logit_diff, "generated": self.generated}
        moved = ("value_change", "value_low", "value_high") if self.value is not None else ()
        if self.value is not None:
            whole["value"] = self.value
        yield {"kind": self.kind, "name": "none", "components": "", "n_prompts": self.n_prompts, **whole}
        for each in self.effects:
            row: dict[str, Any] = {"kind": self.kind, "name": each.name, "components": " ".join(each.components)}
            row |= {"n_prompts": self.n_prompts, "share": each.accuracy}
            for column in (
                *("logit_diff", "generated", "change", "change_low", "change_high", "p"),
                *("logit_diff_change", "logit_diff_low", "logit_diff_high"),
                *(("value", *moved) if moved else ()),
            ):
                row[column] = getattr(each, column)
            yield row

    def to_frame(self) -> pd.DataFrame:
        """Return one row a set of components, by its name, `none` first, with the columns of a run's `ablation.csv`."""
        return pd.DataFrame(list(self.rows())).set_index("name")

    def plot(self) -> Axes:
        """Return the axes of the bars that a run draws; a notebook shows them as a picture."""
        return draw("ablations", self)

    def __repr__(self) -> str:
        return f"Ablations({self._fact()})"

    def _repr_html_(self) -> str:
        return markup.block(self._fact(), [], markup.table(self.to_frame()))

    def _fact(self) -> str:
        changes = ", ".join(
            f"{each.name} {100 * each.change:+.1f} points{change_of_metric(self, each)}"
            for each in self.effects[: len(self.single) + 1][:8]
        )
        whole = f"{self.n_prompts} prompts, {self.accuracy:.1%} correct with nothing ablated"
        return f"{self.kind} ablation, {whole}; without: {changes}"


def change_of_metric(ablations: Ablations, effect: AblationEffect) -> str:
    """Return how F changes, for a sentence; empty where it is the logit difference, which is said elsewhere."""
    if effect.value_change is None:
        return ""
    return f", {ablations.metric} {effect.value_change:+.4g} {ablations.unit}"
