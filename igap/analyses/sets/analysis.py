"""The analysis `sets`: what the components of one or more sets do together; `analyses=sets` asks for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
import pandas as pd
from pydantic import AfterValidator, Field

from igap.analyses.base import Analysis, RunContext, settings_of
from igap.analyses.named_components import check_named, names_in
from igap.analyses.sets.effects import measure_set
from igap.analyses.sets.results import SetEffects
from igap.attribution.maps import Progress
from igap.components import parse_component, sets_problem
from igap.config import Frozen, RunConfig
from igap.models.load import Header

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ITEM = "analyses.sets.components"


def _check(components: str) -> str:
    if problem := sets_problem(components.split()):
        raise ValueError(problem)
    return components


class Settings(Frozen):
    """Which sets, and how exactly."""

    components: Annotated[str, AfterValidator(_check)] = "top4:ap"
    """Sets, with a blank between them."""
    n_orders: int = Field(100, ge=2, le=100_000)
    """Random orders of a set of more than 8."""
    n_steps: int = Field(50, ge=1, le=2000)
    """IG's quadrature nodes."""


@dataclass(frozen=True, eq=False)
class Sets:
    """What the components of each set do together."""

    by_name: Mapping[str, SetEffects]
    """By the set as it was written."""

    def summary(self) -> dict[str, float | int | str | None]:
        """Return `sets/SET/...`: what it does together, apart, and its largest interaction, in F's unit."""
        flat: dict[str, float | int | str | None] = {}
        for text, of_set in self.by_name.items():
            frame, apart = of_set.subset_frame(), float(of_set.alone.sum())
            whole: dict[str, float | int | str | None] = {
                "members": " ".join(of_set.members),
                **{end: float(frame[end].iloc[-1]) for end in ("effect", "effect_low", "effect_high") if end in frame},
                "sum_alone": apart,
                "interaction": of_set.effect - apart,
                "reading": of_set.reading(of_set.name),
                "ig_delta": of_set.delta,
            }
            several = frame[frame["size"] > 1]["interaction"].dropna()
            if len(several):
                at = int(np.abs(several.to_numpy()).argmax())
                whole |= {"largest_interaction": float(several.iloc[at]), "largest_interaction/of": several.index[at]}
            else:
                whole |= {"largest_interaction": None, "largest_interaction/reason": "the set has one component"}
            flat |= {f"sets/{text}/{name}": value for name, value in whole.items()}
        return flat

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return one row a set and subset, and one a set and member; effects and interactions in F's unit."""
        subsets = {text: of_set.subset_frame() for text, of_set in self.by_name.items()}
        members = {text: of_set.to_frame() for text, of_set in self.by_name.items()}
        return {
            name: pd.concat(frames, names=["set"]).reset_index()
            for name, frames in (("sets", subsets), ("set_members", members))
        }

    def sentences(self) -> tuple[str, ...]:
        """Return, for each set, what it does together and apart, its largest interaction, and its members' shares."""
        lines: list[str] = []
        for text, of_set in self.by_name.items():
            first, *more = of_set.sentences()
            lines += [first if text == of_set.name else f"{text}: {first}", *more]
        return tuple(lines)


class SetsAnalysis(Analysis[Sets]):
    """Effects of every subset of a set, interactions, Shapley values, and IG of the set."""

    name = "sets"
    settings = Settings
    any_metric = True

    def misfit(self, config: RunConfig) -> str:
        """Return why not: positions that are not moved together."""
        together = config.positions.kind in ("all", "last", "diff")
        return "" if together else f"of positions that are moved together, not of positions={config.positions.kind}"

    def check(self, config: RunConfig, header: Header) -> Mapping[str, str]:
        """Refuse sets that the model or the run does not have."""
        if self.is_requested(config):
            texts = settings_of(config, self.name, Settings).components.split()
            check_named(texts, config, header, item=ITEM)
        return {}

    def run(self, context: RunContext, on_progress: Progress | None) -> Sets:
        """Return the effects of each set, towards the run's baseline."""
        config = context.config
        settings = settings_of(config, self.name, Settings)
        texts = settings.components.split()
        effects: dict[str, SetEffects] = {}
        for place, text in enumerate(texts):

            def advance(done: int, total: int, before: int = place) -> None:
                if on_progress:
                    on_progress(before * 1000 + 1000 * done // total, len(texts) * 1000)

            effects[text] = measure_set(
                context.opened,
                [parse_component(name) for name in names_in(text, context.maps)],
                baseline=context.baseline,
                direction=config.direction,
                positions=config.positions.value,
                n_orders=settings.n_orders,
                n_steps=settings.n_steps,
                seed=config.seed,
                batch_size=config.batch_size,
                memory_gib=config.memory_gib,
                on_progress=advance,
            )
        return Sets(effects)

    def figures(self, finding: Sets, title: str) -> "Mapping[str, Figure]":
        """Draw `sets`, a row a set."""
        from igap.analyses.sets.plots import set_bars

        return {"sets": set_bars(finding.by_name, title=title)}
