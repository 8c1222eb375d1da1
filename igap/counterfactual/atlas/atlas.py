"""The atlas of several searches: what each head can be made to do, by which prompt, and by how few prompts all of them.

Its matrix has the AP effect of every head in the best prompts of every search, over the searches' clean prompts, and in
the pairs made by hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Float64

from igap.counterfactual.atlas.clusters import Cluster, describe_edits, group_prompts
from igap.counterfactual.atlas.cover import Cover, fewest_prompts
from igap.counterfactual.search import SearchResult
from igap.counterfactual.spaces.base import Candidate, Space
from igap.errors.missing import Missing

SHARE = 0.95
"""Of what all prompts show, what the few show."""
BY_HAND = "by hand"
_MOST_SAID = 6

Scalar = float | int | str | None


@dataclass(frozen=True, eq=False)
class Atlas:
    """What every head does in every prompt, and what follows from it. Effects are in F's unit."""

    heads: tuple[str, ...]
    prompts: tuple[str, ...]
    """The search whose best prompt it is, by its component; the first is the pairs made by hand."""
    effects: Float64[np.ndarray, "head prompt"]
    """AP, means over the clean prompts."""
    heldout: Float64[np.ndarray, "head prompt"] | None
    """The same over clean prompts that no search has seen; of the prompts made by hand NaN."""
    space: Space
    candidates: tuple[Candidate | None, ...]
    corrupted: tuple[str, ...]
    """Each prompt with the first clean prompt."""
    unit: str
    alone: Float64[np.ndarray, " head"] | None = None
    """Of one search for all heads: each head's effect in its own best prompt, in which the others were not patched."""
    rules: tuple[str, ...] = ()
    """That prompt's words."""
    n_tried: int = 0
    """Prompts that this search tried."""
    cost: float = 0.0
    """Forward equivalents that it took, this time."""
    interrupted: bool = False
    """Whether a KeyboardInterrupt ended it early."""

    @cached_property
    def largest(self) -> Float64[np.ndarray, " head"]:
        """The largest effect of each head that was measured."""
        best = self.effects[np.arange(len(self.heads)), self.sizes.argmax(1)]
        return best if self.alone is None else np.where(np.abs(self.alone) > np.abs(best), self.alone, best)

    @property
    def sizes(self) -> Float64[np.ndarray, "head prompt"]:
        """|effect|."""
        return np.asarray(np.abs(self.effects))

    @cached_property
    def cover(self) -> Cover:
        """The fewest prompts that show `SHARE` of what all of them show."""
        return fewest_prompts(self.sizes, SHARE, float(np.abs(self.largest).sum()))

    @cached_property
    def clusters(self) -> tuple[Cluster, ...]:
        """The searches' prompts by what they make visible; the largest first."""
        groups, _ = group_prompts(self.sizes[:, 1:])
        every = [
            Cluster(
                tuple(prompt + 1 for prompt in group),
                describe_edits(self.space, [candidate for p in group if (candidate := self.candidates[p + 1])]),
            )
            for group in groups
        ]
        return tuple(sorted(every, key=lambda cluster: -len(cluster.prompts)))

    @property
    def order(self) -> list[int]:
        """The prompts made by hand, then the searches' in the order of the clusters' tree."""
        return [0, *(prompt + 1 for prompt in group_prompts(self.sizes[:, 1:])[1])]

    @property
    def transfer(self) -> float | Missing:
        """What those of the few that searches found show on held-out prompts, of what they show on the search's own.

        Each head in the one of them that shows it most.

        An effect that turns round counts against it.
        """
        if self.heldout is None:
            return Missing("heldout.n=0")
        few = [prompt for prompt in self.cover.chosen if prompt]
        rows = np.arange(len(self.heads))
        best = np.array(few)[self.sizes[:, few].argmax(1)] if few else np.zeros(0, dtype=int)
        own = self.effects[rows, best] if few else np.zeros(0)
        if not np.abs(own).sum():
            return Missing("no prompt of a search is among the few")
        return float((self.heldout[rows, best] * np.sign(own)).sum() / np.abs(own).sum())

    def summary(self) -> dict[str, Scalar]:
        """Return `atlas/...`: numbers of prompts, shares, transfer."""
        transfer, cover = self.transfer, self.cover
        flat: dict[str, Scalar] = {
            "atlas/n_heads": len(self.heads),
            "atlas/n_prompts": len(self.prompts),
            "atlas/n_chosen": len(cover.chosen),
            "atlas/n_least": cover.least,
            "atlas/share": cover.shares[-1],
            "atlas/share_by_hand": float(self.sizes[:, 0].sum() / np.abs(self.largest).sum()),
            "atlas/n_clusters": len(self.clusters),
            **({"atlas/n_tried": self.n_tried} if self.n_tried else {}),
        }
        return flat | (
            transfer.to_flat("atlas/transfer") if isinstance(transfer, Missing) else {"atlas/transfer": transfer}
        )

    def head_frame(self) -> pd.DataFrame:
        """Return one row a head: what it does by hand, and at most, and in which prompt."""
        best = self.sizes.argmax(1)
        rows = np.arange(len(self.heads))
        few = list(self.cover.chosen)
        frame = {
            "name": self.heads,
            "effect_by_hand": self.effects[:, 0],
            "effect_best": self.effects[rows, best],
            "prompt": [self.prompts[prompt] for prompt in best],
            "effect_chosen": self.effects[rows, np.array(few)[self.sizes[:, few].argmax(1)]],
            "prompt_chosen": [self.prompts[few[i]] for i in self.sizes[:, few].argmax(1)],
        }
        if self.alone is not None:
            frame["rule_alone"], frame["effect_alone"] = self.rules, self.alone
        if self.heldout is not None:
            frame["effect_heldout"] = self.heldout[rows, best]
        return pd.DataFrame(frame)

    def prompt_frame(self) -> pd.DataFrame:
        """Return one row a prompt: its words, its cluster, which heads it shows most, its place among the few."""
        cluster = {prompt: number for number, each in enumerate(self.clusters, start=1) for prompt in each.prompts}
        place = {prompt: number for number, prompt in enumerate(self.cover.chosen, start=1)}
        best = self.sizes.argmax(1)
        rows: list[dict[str, Scalar]] = []
        for prompt, name in enumerate(self.prompts):
            largest = np.argsort(-self.sizes[:, prompt], kind="stable")
            shown = [self.heads[head] for head in largest if best[head] == prompt]
            candidate = self.candidates[prompt]
            rows.append(
                {
                    "prompt": name,
                    "chosen": place.get(prompt),
                    "share": self.cover.shares[place[prompt] - 1] if prompt in place else None,
                    "cluster": cluster.get(prompt),
                    "shows_most": " ".join(shown),
                    "rule": "" if candidate is None else self.space.rule(candidate),
                    "corrupted": self.corrupted[prompt],
                }
            )
        return pd.DataFrame(rows).astype({"chosen": "Int64", "cluster": "Int64"})

    def cluster_frame(self) -> pd.DataFrame:
        """Return one row a cluster: its edits, its prompts, and the heads that it shows most."""
        return pd.DataFrame(
            [
                {
                    "cluster": number,
                    "edits": cluster.edits,
                    "n": len(cluster.prompts),
                    "prompts": " ".join(self.prompts[prompt] for prompt in cluster.prompts),
                    "shows": " ".join(self._choose_heads(cluster)),
                }
                for number, cluster in enumerate(self.clusters, start=1)
            ]
        )

    def _choose_heads(self, cluster: Cluster) -> list[str]:
        """The heads with the largest mean |effect| in the cluster's prompts, down to a tenth of the largest."""
        means = self.sizes[:, list(cluster.prompts)].mean(1)
        order = np.argsort(-means, kind="stable")[:_MOST_SAID]
        return [self.heads[head] for head in order if means[head] > means.max() / 10]

    def sentences(self) -> tuple[str, ...]:
        """Return how few prompts show the heads, which these are, how they transfer, and what the clusters share."""
        cover, transfer, flat = self.cover, self.transfer, self.summary()
        n = len(cover.chosen)
        sure = "no fewer of these do" if cover.is_fewest else f"no fewer than {cover.least} of these do"
        if self.alone is not None:
            sure = f"{sure.replace('of these', f'of the {len(self.prompts)} in which all heads were patched')}"
        n_found = len(self.prompts) if self.alone is None else 1 + len(set(self.rules))
        lines = [
            f"{n} prompt{'s show' if n > 1 else ' shows'} {cover.shares[-1]:.1%} of what all {n_found} found "
            f"show of {len(self.heads)} heads ({sure}); those made by hand show {flat['atlas/share_by_hand']:.1%}"
        ]
        for prompt, share in list(zip(cover.chosen, cover.shares, strict=True))[:_MOST_SAID]:
            candidate = self.candidates[prompt]
            rule = "the pairs as they are" if candidate is None else self.space.rule(candidate)
            lines.append(f"  {self.prompts[prompt]} ({rule}): {share:.1%} so far")
        if n > _MOST_SAID:
            lines.append(
                f"  and {n - _MOST_SAID} more, which add {cover.shares[-1] - cover.shares[_MOST_SAID - 1]:.1%}"
            )
        if not isinstance(transfer, Missing):
            kept = f"{round(100 * transfer)}%"
            lines.append(f"on held-out prompts those that searches found show {kept} of what they show here")
        for number, cluster in enumerate(self.clusters[:_MOST_SAID], start=1):
            shown, size = " ".join(self._choose_heads(cluster)), len(cluster.prompts)
            lines.append(f"cluster {number}, {size} prompt{'s' if size > 1 else ''}, {cluster.edits}: {shown}")
        return tuple(lines)


def make_atlas(results: Sequence[tuple[str, SearchResult]]) -> Atlas:
    """Return the atlas of searches of one space, of components by their names."""
    first = results[0][1]
    heads = tuple(head.name for head in first.validation.heads)
    columns = [[head.reference for head in first.validation.heads]]
    # Of clean prompts that a candidate does not change the effects are 0, and not among those whose mean `best` is.
    changed = [len(result.validation.pairs) / len(result.clean) for _, result in results]
    columns += [
        [share * head.best for head in result.validation.heads]
        for share, (_, result) in zip(changed, results, strict=True)
    ]
    held = [[head.heldout for head in result.validation.heads] for _, result in results]
    heldout = None
    if all(value is not None for column in held for value in column):
        heldout = np.array([[np.nan] * len(heads), *held], dtype=np.float64).T
    return Atlas(
        heads=heads,
        prompts=(BY_HAND, *(name for name, _ in results)),
        effects=np.array(columns, dtype=np.float64).T,
        heldout=heldout,
        space=first.space,
        candidates=(None, *(result.validation.candidate for _, result in results)),
        corrupted=(first.clean[0].corrupted, *(result.best.corrupted for _, result in results)),
        unit=first.objective.unit,
    )
