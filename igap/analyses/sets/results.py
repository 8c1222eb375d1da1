"""What `set_effects` returns: what a set of components does together and apart, and how that is shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float64

from igap.display import markup
from igap.display.binding import Axes, draw
from igap.errors import InputError, short_repr
from igap.errors.arguments import checks_arguments
from igap.statistics.bootstrap import mean_intervals
from igap.statistics.coalitions import interactions_of, sampled_interval, shapley_values
from igap.vocabulary import LEAST_ON_CLEAN, BaselineKind, Direction

Reading = Literal["redundancy", "synergy", "additive", "mixed", "undefined"]
"""What together and apart say of components.

`redundancy`: they stand in for each other, as the inputs of an OR. `synergy`: they need each other, as those of an AND.
`additive`: together and apart differ by less than 5% of the largest effect, together or of one alone. `mixed`: their
effects have different signs, those of less than that aside. `undefined`: F is least in the run that is patched (`kl`
and `js` when noising) and grows there with the square of a change, so that anything does more together.
"""

ADDITIVE = 0.05

_WORDS: dict[Reading, str] = {
    "redundancy": "redundancy, they stand in for each other",
    "synergy": "synergy, they need each other",
    "additive": "nearly additive",
    "mixed": "effects of different signs",
    "undefined": "no reading, F is least in the run that is patched",
}
_SHOWN = 3
"""Members and subsets that a line names."""


@checks_arguments
@dataclass(frozen=True, eq=False)
class SetEffects:
    """What the components of a set do together, every subset of them, and each of them; on one pair or several.

    Effects and interactions are in F's unit. A member is moved by giving it its activation in the other run.

    Example:
        >>> effects = set_effects(model, pair, "0.3+0.5+2.1")
        >>> effects.to_frame().round(2).loc["0.3"].to_dict()
        {'alone': -0.96, 'last': -1.38, 'shapley': -1.17, 'ig': -1.16}
    """

    members: tuple[str, ...]
    subsets: tuple[tuple[int, ...], ...]
    """The subsets that were moved, as places in `members`: of up to 8 members all, otherwise those of none, one, two,
    all but one and all. The empty one is first, the whole last."""
    by_pair: Float64[np.ndarray, "pair subset"]
    """F with the subset moved minus F of the run, in F's unit, of each pair. Negative: moving it lowers F."""
    contributions: Float64[np.ndarray, "order member"] | None
    """What each member adds when all are moved one after the other, in random orders; of several pairs the mean. None
    where all subsets were moved."""
    ig_by_pair: Float64[np.ndarray, "pair member"]
    """Integrated Gradients of the members, all moving together from a to a' in a straight line, in F's unit."""
    gaps: Float64[np.ndarray, " pair"]
    """F(clean) - F(corrupted), in F's unit."""
    rounding: float
    """What an effect may be off by, in F's unit."""
    n_steps: int
    """IG's quadrature nodes."""
    seed: int
    """Of the random orders, and of intervals over pairs."""
    metric: str
    """F."""
    unit: str
    baseline: BaselineKind
    direction: Direction
    positions: str = "all"
    """Which positions are moved: all, last, diff, or a span's name."""

    @property
    def effect(self) -> float:
        """What the whole set does: AP of the set, in F's unit; of several pairs the mean, as everywhere below."""
        return float(self.effects[-1])

    @property
    def effects(self) -> Float64[np.ndarray, " subset"]:
        """Effect of each of `subsets`."""
        return np.asarray(self.by_pair.mean(0))

    @property
    def alone(self) -> Float64[np.ndarray, " member"]:
        """Effect of each member alone: activation patching."""
        return self.effects[[self._place[(i,)] for i in range(len(self.members))]]

    @property
    def last(self) -> Float64[np.ndarray, " member"]:
        """What moving each member adds when all others are moved: the effect of the set minus that of the others."""
        everyone = range(len(self.members))
        others = [self._place[tuple(i for i in everyone if i != member)] for member in everyone]
        return self.effect - self.effects[others]

    @property
    def interactions(self) -> Float64[np.ndarray, " subset"]:
        """What each of `subsets` does that no smaller one does: effects are sums of them over the subsets of a subset.

        Of two members effect(c and d) - effect(c) - effect(d). NaN where smaller subsets were not moved.
        """
        return np.asarray(self.interactions_by_pair.mean(0))

    @property
    def interactions_by_pair(self) -> Float64[np.ndarray, "pair subset"]:
        """`interactions` of each pair."""
        if self.contributions is None:
            return interactions_of(self.by_pair)
        known = np.full_like(self.by_pair, np.nan)
        for place, subset in enumerate(self.subsets):
            if len(subset) < 3:
                parts = [self._place[(member,)] for member in subset] if len(subset) == 2 else []
                known[:, place] = self.by_pair[:, place] - self.by_pair[:, parts].sum(1)
        return known

    @property
    def pairwise(self) -> Float64[np.ndarray, "member member"]:
        """Interaction of every two members, symmetric; of a member with itself 0."""
        matrix = np.zeros((len(self.members), len(self.members)))
        for subset, value in zip(self.subsets, self.interactions, strict=True):
            if len(subset) == 2:
                matrix[subset], matrix[subset[::-1]] = value, value
        return matrix

    @property
    def shapley(self) -> Float64[np.ndarray, " member"]:
        """Each member's mean contribution over all orders in which the members may be moved; they sum to `effect`.

        Exact where all subsets were moved, otherwise the mean over the random orders.
        """
        if self.contributions is None:
            return shapley_values(self.interactions)
        return np.asarray(self.contributions.mean(0))

    @property
    def shapley_interval(self) -> tuple[Float64[np.ndarray, " member"], Float64[np.ndarray, " member"]]:
        """Ends of the 95% interval of `shapley`: over the random orders, or, where it is exact, over the pairs.

        NaN where it is exact and there is one pair.
        """
        if self.contributions is not None:
            return sampled_interval(self.contributions)
        interval = mean_intervals(shapley_values(self.interactions_by_pair), seed=self.seed)
        return interval.low, interval.high

    @property
    def ig(self) -> Float64[np.ndarray, " member"]:
        """Integrated Gradients of each member on the set's path; they sum to `effect` but for `delta`."""
        return np.asarray(self.ig_by_pair.mean(0))

    @property
    def delta(self) -> float:
        """Completeness delta: the sum of IG's parts minus its effect; of several pairs the farthest from 0."""
        deltas = self.ig_by_pair.sum(1) - self.by_pair[:, -1]
        return float(deltas[np.abs(deltas).argmax()])

    @checks_arguments
    def reading(self, subset: str) -> Reading:
        """Return what the effects of a subset together and of its members alone say; see `Reading`.

        Noising: more together than apart is redundancy, because a member alone leaves its work to the others; less is
        synergy. Denoising: more is synergy, because a member alone is not enough; less is redundancy.

        Args:
            subset: Names of members, joined by +, whose effect is among `subsets`.

        Raises:
            InputError: It is none of `subsets`.
        """
        names = subset.split("+")
        held = tuple(place for place, name in enumerate(self.members) if name in names)
        if len(held) != len(names) or held not in self._place:
            raise InputError(
                f"subset: got {short_repr(subset)}, wanted members of {self.name} joined by +, each once, whose effect "
                "was measured: see subset_frame()."
            )
        return self._reading(held)

    def _reading(self, subset: Sequence[int]) -> Reading:
        if self.direction == "noising" and self.metric in LEAST_ON_CLEAN:
            return "undefined"
        together, alone = self.effects[self._place[tuple(subset)]], self.alone[list(subset)]
        apart, least = alone.sum(), max(self.rounding, ADDITIVE * max(abs(together), np.abs(alone).max()))
        if abs(together - apart) <= least:
            return "additive"
        if len({np.sign(each) for each in (together, *alone) if abs(each) > least}) > 1:
            return "mixed"
        return "redundancy" if (abs(together) > abs(apart)) == (self.direction == "noising") else "synergy"

    @property
    def _largest(self) -> int | None:
        """The place in `subsets` of the largest |interaction| of two members or more; None of a set of one."""
        size = np.abs(np.nan_to_num(self.interactions))
        size[[len(subset) < 2 for subset in self.subsets]] = -1
        return int(size.argmax()) if len(self.members) > 1 else None

    @property
    def name(self) -> str:
        """The members' names, joined by +."""
        return "+".join(self.members)

    def _name_of(self, subset: Sequence[int]) -> str:
        """Return the names of a subset's members, joined by +; of the empty one `none`."""
        return "+".join(self.members[member] for member in subset) or "none"

    @cached_property
    def _place(self) -> dict[tuple[int, ...], int]:
        """Subset to its place in `subsets`."""
        return {subset: place for place, subset in enumerate(self.subsets)}

    def to_frame(self) -> pd.DataFrame:
        """Return one row a member, by its name: `alone`, `last`, `shapley` with its interval if it has one, `ig`."""
        low, high = self.shapley_interval
        ends = {} if np.isnan(low).any() else {"shapley_low": low, "shapley_high": high}
        columns = {"alone": self.alone, "last": self.last, "shapley": self.shapley, **ends, "ig": self.ig}
        return pd.DataFrame(columns, index=pd.Index(self.members, name="name"))

    def subset_frame(self) -> pd.DataFrame:
        """Return one row a subset but the empty one, by its name: `size`, `effect`, `interaction`.

        Of several pairs both with the ends of their 95% interval over pairs.
        """
        columns: dict[str, object] = {"size": [len(subset) for subset in self.subsets]}
        for name, by_pair in (("effect", self.by_pair), ("interaction", self.interactions_by_pair)):
            columns[name] = by_pair.mean(0)
            if len(by_pair) > 1:
                known = np.isfinite(by_pair).all(0)
                for end in ("low", "high"):
                    values = np.full(len(self.subsets), np.nan)
                    values[known] = getattr(mean_intervals(by_pair[:, known], seed=self.seed), end)
                    columns[f"{name}_{end}"] = values
        names = pd.Index([self._name_of(subset) for subset in self.subsets], name="name")
        return pd.DataFrame(columns, index=names).iloc[1:].sort_values("size", kind="stable")

    def plot(self) -> Axes:
        """Return the first axes of the figure that a run draws; a notebook shows the whole as a picture."""
        return draw("set", self)

    def sentences(self) -> tuple[str, ...]:
        """Return what the set does together and apart, its largest interaction, and the shares of its members."""
        where = "" if self.positions == "all" else f", positions {self.positions}"
        order = np.argsort(-np.abs(self.shapley), kind="stable")
        everyone = tuple(range(len(self.members)))
        lines = [f"{self._short_name} moved together{where}: {self.effect:+.3f} {self.unit}"]
        if len(everyone) > 1:
            lines[0] += (
                f", alone {self._name_first(self.alone, np.argsort(-np.abs(self.alone), kind='stable'))}, in sum "
                f"{self.alone.sum():+.3f}: {_WORDS[self._reading(everyone)]}"
            )
            assert self._largest is not None
            subset, value = self.subsets[self._largest], self.interactions[self._largest]
            among = "" if self.contributions is None else " of two"
            reading = f": {_WORDS[self._reading(subset)]}" if len(subset) == 2 else ""
            lines.append(f"  largest interaction{among}: {self._name_of(subset)} {value:+.3f}{reading}")
        how = "" if self.contributions is None else f" ({len(self.contributions)} random orders)"
        lines.append(f"  Shapley values{how}: {self._name_first(self.shapley, order)}")
        lines.append(f"  IG of the set: {self._name_first(self.ig, order)}; completeness delta {self.delta:+.1e}")
        return tuple(lines)

    @property
    def _short_name(self) -> str:
        few = self._name_of(range(len(self.members))[:8])
        return few if len(self.members) <= 8 else f"{few}+... ({len(self.members)} members)"

    def _name_first(self, values: Float64[np.ndarray, " member"], order: Sequence[int] | np.ndarray) -> str:
        """Return the first few members with their values."""
        shown = ", ".join(f"{self.members[i]} {values[i]:+.3f}" for i in order[:_SHOWN])
        return shown + (", ..." if len(order) > _SHOWN else "")

    def __repr__(self) -> str:
        return f"SetEffects({self.direction} with the {self.baseline} baseline; {self.sentences()[0]})"

    def _repr_html_(self) -> str:
        heading = f"effects of a set, {self.direction} with the {self.baseline} baseline, in {self.unit}"
        return markup.block(heading, self.sentences(), markup.table(self.to_frame()))
