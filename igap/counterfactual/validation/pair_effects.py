"""What a run reports of a target in some pairs: its effect, its rank among the heads, its curve, its deletion."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from igap.analyses.curves.curves import DEFAULT_ALPHAS, OutputCurves, trace_curves
from igap.attribution.activation_patching import patch_components
from igap.attribution.maps import Advance, AttributionMap, scores_exist
from igap.attribution.over_pairs import attribute_pairs
from igap.components import component_name
from igap.counterfactual.objective.patch import find_positions
from igap.counterfactual.objective.typicality import MIN_PROMPTS
from igap.counterfactual.session import SearchSession
from igap.counterfactual.target import Target
from igap.counterfactual.validation.results import Deletion, HeadEffect, PairEffects
from igap.engine.baselines import Baseline
from igap.engine.batching import budget_bytes
from igap.engine.component_sets import ComponentSet
from igap.engine.contrast import Contrast
from igap.engine.open_pairs import BaselineOf, OpenPairs, open_pairs
from igap.errors import InputError
from igap.errors.missing import Missing
from igap.inputs.prompts import PromptPair, TokenPair, tokenize
from igap.vocabulary import BaselineKind


def open_at_target(
    session: SearchSession, pairs: Sequence[PromptPair], target: Target
) -> AbstractContextManager[OpenPairs]:
    """A block with contrasts of these pairs at the target's positions, of which heads and the target are asked."""
    return open_pairs(
        session.model,
        pairs,
        sites=sorted({"heads", *target.sites}),
        kept_bytes=budget_bytes(session.model.W_E.device, session.memory_gib),
        metric=session.objective.metric,
        where=partial(find_positions, target),
    )


def _patch_target(
    opened: OpenPairs, target: Target, baseline: BaselineKind | BaselineOf = "corrupted"
) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"], Float[Tensor, " pair"]]:
    """AP effect, gap, and the least gap that gives a score, of each pair, in F's unit, from its texts as in any run."""
    effects, gaps, least = torch.zeros(3, len(opened.pairs))
    with torch.no_grad():
        for indices, contrast in opened.contrasts(baseline):
            if target.single is None:
                every = torch.ones(1, len(target.members), dtype=torch.bool, device=contrast.base.tokens.device)
                patched = ComponentSet(contrast, target.members).patch(every)
            else:
                site, layer, index = target.single
                patched = contrast.patches(site, layer)(torch.tensor([index]))
            effects[list(indices)] = (patched[:, 0] - contrast.value(contrast.base)).float().cpu()
            gaps[list(indices)] = contrast.gap.float().cpu()
            least[list(indices)] = torch.tensor(contrast.least_gaps)
    return effects, gaps, least


def trace(opened: OpenPairs, target: Target) -> OutputCurves:
    """F along the target's path."""
    return trace_curves(opened, (target.component,), DEFAULT_ALPHAS)


def measure_pairs(opened: OpenPairs, target: Target) -> tuple[PairEffects, Float[Tensor, "layer head"]]:
    """What a run reports of the target for these pairs, and the AP effect of every head at its span, in F's unit."""

    def patch(contrast: Contrast, advance: Advance) -> list[AttributionMap]:
        return patch_components(contrast, "heads", advance)

    effects, gaps, least = _patch_target(opened, target)
    each = zip(effects.tolist(), gaps.tolist(), least.tolist(), strict=True)
    scores = [effect / gap for effect, gap, enough in each if scores_exist(gap, enough)]
    grid = attribute_pairs(patch, opened, "heads").effect
    rank: int | Missing = Missing(f"{_in_words(target)} has no rank among heads")
    if target.head is not None:
        size = grid.abs()
        rank = int((size > size[target.head[1:]]).sum()) + 1
    score = float(np.mean(scores)) if scores else Missing("no pair with a gap that is large enough for a score")
    return PairEffects(effects.mean().item(), gaps.mean().item(), score, len(scores), rank), grid


def _in_words(target: Target) -> str:
    if target.single is None:
        return "a set"
    return "a neuron" if target.sites == ("neurons",) else "what is no head"


def head_effects(
    reference: Float[Tensor, "layer head"],
    best: Float[Tensor, "layer head"],
    heldout: Float[Tensor, "layer head"] | None = None,
) -> tuple[HeadEffect, ...]:
    """The AP effects of every head."""
    return tuple(
        HeadEffect(
            component_name("heads", layer, head),
            reference[layer, head].item(),
            best[layer, head].item(),
            None if heldout is None else heldout[layer, head].item(),
        )
        for layer in range(best.shape[0])
        for head in range(best.shape[1])
    )


def delete(
    opened: OpenPairs, target: Target, best: float, ordinary: Sequence[PromptPair] | None = None
) -> Deletion | Missing:
    """Replace the activation by its mean over ordinary prompts (None: generated ones of the clean prompts' length).

    `best` is the best pairs' effect, in F's unit.
    """
    lengths = {pair.n_prompt for pair in opened.tokens}
    texts: dict[int, list[str]] = {length: [] for length in lengths}
    for pair in ordinary or ():
        encoded = tokenize(opened.model, pair, several=True)
        texts.setdefault(encoded.n_prompt, []).append(pair.clean)
    fewest = min(len(texts[length]) for length in lengths)
    if ordinary is not None and fewest < MIN_PROMPTS:
        of_one = " of some clean prompts' length" if fewest < len(ordinary) else ""
        return Missing(f"there are {fewest} ordinary prompts{of_one}, fewer than {MIN_PROMPTS}")

    def mean(pairs: Sequence[TokenPair]) -> Baseline:
        return Baseline("mean", prompts=tuple(texts[pairs[0].n_prompt]))

    try:
        deletion = _patch_target(opened, target, mean)[0].mean().item()
    except InputError as error:  # a tokenizer that does not know the reference prompts' words
        return Missing(str(error))
    return Deletion(deletion, injected=best - deletion)
