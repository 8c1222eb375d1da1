"""Prompts that make the same heads visible, and the edits that they share."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage

from igap.counterfactual.spaces.base import KEEP, Candidate, Space

_APART = 0.3
"""Cosine distance, 0 to 2, above which groups of prompts are told apart."""
_SHARED = 0.8
"""Share of a cluster's prompts that an edit is said of."""


@dataclass(frozen=True)
class Cluster:
    """Prompts in which the heads' |effects| are alike."""

    prompts: tuple[int, ...]
    """By number."""
    edits: str
    """What most of them change, "subject := IO, place"; a slot alone has several words."""


def group_prompts(sizes: Float64[np.ndarray, "head prompt"]) -> tuple[list[list[int]], list[int]]:
    """Return groups of prompts by the cosine of their |effects| (average linkage), and all in the order of the tree.

    Prompts in which no head does anything are a group of their own.
    """
    still = np.flatnonzero(sizes.max(0) == 0).tolist()
    moving = np.flatnonzero(sizes.max(0) > 0)
    if len(moving) < 2:
        return [each for each in (moving.tolist(), still) if each], [*moving.tolist(), *still]
    tree = linkage(sizes[:, moving].T, method="average", metric="cosine")
    labels = fcluster(tree, _APART, criterion="distance")
    order = [int(moving[leaf]) for leaf in leaves_list(tree)]
    groups: dict[int, list[int]] = {}
    label_of = dict(zip(moving.tolist(), labels.tolist(), strict=True))
    for prompt in order:
        groups.setdefault(label_of[prompt], []).append(prompt)
    return [*groups.values(), *([still] if still else [])], [*order, *still]


def describe_edits(space: Space, candidates: Sequence[Candidate]) -> str:
    """Return the edits that four in five of these candidates share: with their words, or the slots that change."""
    n = len(candidates)
    words = [space.words(candidate) for candidate in candidates]
    parts = []
    for index, slot in enumerate(space.slots):
        options = Counter(row[index] for row in words)
        (option, count), changed = options.most_common(1)[0], n - options[KEEP]
        if option != KEEP and count >= _SHARED * n:
            parts.append(f"{slot.name} := {option.lstrip('=')}")
        elif changed >= _SHARED * n:
            parts.append(slot.name)
    return ", ".join(parts) or "nothing in common"
