"""How far to believe a search's best candidate: against chance, against harmless edits, on prompts it never saw.

Everything is evaluated here anew; effects are in logits, means over clean prompts under the search's sign and aggregate
unless said otherwise.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.attribution.activation_patching import activation_patching
from igap.attribution.maps import scores_exist
from igap.baselines import BaselineKind
from igap.contrast import contrasts
from igap.counterfactual.evaluation import Evaluator, Target
from igap.counterfactual.objectives import Objective
from igap.counterfactual.proposals import History, draw
from igap.counterfactual.space import LISTS, Candidate, Filled, Space, build, fill, slot_names
from igap.counterfactual.study import Tried
from igap.errors import InputError
from igap.intervals import bootstrap_means
from igap.prompts import PromptPair, tokenize

Number = float | int | str | None

NEUTRAL = 64
"""Neutral edits that are drawn."""
TOP = 20
_NEUTRAL_SLOTS = {"place": "places", "verb": "verbs", "object": "objects", "other": "objects"}


@dataclass(frozen=True, eq=False)
class Certificate:
    """What is known about the best candidate."""

    candidate: Candidate
    pairs: tuple[PromptPair, ...]
    """The best pair of every clean prompt."""
    summary: Mapping[str, Number]
    tables: Mapping[str, Sequence[Mapping[str, Number]]]
    """`top`, `single_edits`, `ladder`, `slots`: rows."""


def certify(
    model: TransformerBridge,
    filled: Filled,
    heldout: Filled | None,
    target: Target,
    objective: Objective,
    tried: Sequence[Tried],
    *,
    prepend_bos: bool,
    memory_gib: float | None,
    seed: int,
) -> Certificate:
    """The certificate of the best of these trials. Raises ValueError where none has a value."""
    space = filled.space
    ranked = sorted((one for one in tried if one.value == one.value), key=lambda one: -one.value)
    if not ranked:
        raise InputError(f"search: none of {len(tried)} trials has a value; the last says {tried[-1].reason!r}.")
    best = ranked[0].proposal.candidate
    free = Evaluator(model, filled.unshared(), target, memory_gib=memory_gib)

    def worth(rows: Sequence[Tensor]) -> list[float]:
        """Of corrupted prompts, one a clean prompt each."""
        return [float(value) for value in objective.of(free.effects_of(torch.stack(list(rows), 1), objective.measure))]

    own = filled.unshared()
    (value,) = worth([own.partly(best, range(len(space.slots)))])
    hand = torch.cat([tokenize(model, pair).corrupted for pair in filled.pairs])
    (by_hand,) = worth([hand])
    summary: dict[str, Number] = {
        "best/value": value,
        "best/rule": space.rule(best),
        "best/trial": next(i for i, one in enumerate(tried) if one is ranked[0]),
        "best/source": ranked[0].proposal.source,
        "by_hand/value": by_hand,
        **_against_chance(tried),
        **_neutral(model, filled, target, objective, prepend_bos=prepend_bos, memory_gib=memory_gib, seed=seed),
    }

    edits = [(slot, option) for slot, size in enumerate(space.sizes) for option in range(size) if option != best[slot]]
    swapped = [(*best[:slot], option, *best[slot + 1 :]) for slot, option in edits]
    by_edit = worth([own.partly(one, range(len(space.slots))) for one in swapped])
    singles: list[Mapping[str, Number]] = [
        {"slot": space.slots[slot].name, "option": space.slots[slot].options[option], "value": v}
        for (slot, option), v in zip(edits, by_edit, strict=True)
    ]
    summary |= {
        "single_edits/n": len(singles),
        "single_edits/better": sum(v > value + 1e-6 * abs(value) for v in by_edit),
        "single_edits/best": max(by_edit, default=None),
    }

    edited = own.edited(best)
    without = worth([own.partly(best, [i for i in range(len(space.slots)) if i != slot]) for slot in edited])
    slots: list[Mapping[str, Number]] = [
        {"slot": space.slots[slot].name, "word": space.words(best)[slot], "value_without": v, "loss": value - v}
        for slot, v in zip(edited, without, strict=True)
    ]
    ladder: list[Mapping[str, Number]] = []
    for n in range(1, min(3, len(edited)) + 1):
        choices = list(itertools.combinations(edited, n))
        found = worth([own.partly(best, choice) for choice in choices])
        top = int(np.argmax(found))
        names = " ".join(f"{space.slots[i].name}:={space.words(best)[i].lstrip('=')}" for i in choices[top])
        ladder.append({"edits": n, "value": found[top], "share": found[top] / value if value else None, "words": names})
    summary["best/edits"] = len(edited)

    texts = filled.texts(best)
    pairs = tuple(
        PromptPair(pair.clean, text, pair.answer, pair.distractor, pair.min_gap)
        for pair, text in zip(filled.pairs, texts, strict=True)
        if text != pair.clean
    )
    summary |= _as_runs_have_it(model, pairs, filled, target)
    summary |= _held_out(model, heldout, target, objective, best, memory_gib=memory_gib, seed=seed)
    return Certificate(
        candidate=best,
        pairs=pairs,
        summary=summary,
        tables={
            "top": _top(space, filled, ranked),
            "single_edits": sorted(singles, key=lambda row: -float(str(row["value"]))),
            "ladder": ladder,
            "slots": sorted(slots, key=lambda row: -float(str(row["loss"]))),
        },
    )


def _against_chance(tried: Sequence[Tried]) -> dict[str, Number]:
    """The best of the random trials, and of as many of the search's own first ones."""
    random = [one.value for one in tried if one.proposal.source in ("start", "random") and one.value == one.value]
    chosen = [one.value for one in tried if one.proposal.source != "random" and one.value == one.value]
    return {
        "random/n": len(random),
        "random/best": max(random, default=None),
        "random/mean": float(np.mean(random)) if random else None,
        "random/search_at_equal_budget": max(chosen[: len(random)], default=None),
    }


def _neutral(
    model: TransformerBridge,
    filled: Filled,
    target: Target,
    objective: Objective,
    *,
    prepend_bos: bool,
    memory_gib: float | None,
    seed: int,
) -> dict[str, Number]:
    """What edits do that change no name: another place, verb or object; the 95th percentile of their |worth|."""
    template, tokenizer = filled.space.template, model.tokenizer
    names = [slot for slot in slot_names(template) if slot in _NEUTRAL_SLOTS]
    if not names:
        return {"neutral/p95": None, "neutral/p95/reason": "the template has no place, verb or object"}
    lists = {name: [_NEUTRAL_SLOTS[name]] if name in names else ["=keep"] for name in slot_names(template)}
    assert set(_NEUTRAL_SLOTS.values()) <= set(LISTS)
    space = build(template, lists, filled.pairs[0], tokenizer, prepend_bos=prepend_bos)
    neutral = fill(space, filled.pairs, tokenizer, prepend_bos=prepend_bos, device=filled.clean.device)
    evaluator = Evaluator(model, neutral, target, memory_gib=memory_gib)
    drawn = draw(History(space.sizes, (), np.array([])), NEUTRAL, np.random.default_rng(seed))
    effects = evaluator.effects([one.candidate for one in drawn], objective.measure)
    return {
        "neutral/n": len(drawn),
        "neutral/p95": float(np.quantile(np.abs(objective.of(effects)), 0.95)),
    }


def _singly(
    model: TransformerBridge, pairs: Sequence[PromptPair], target: Target, baseline: BaselineKind = "corrupted"
) -> tuple[Tensor, Tensor]:
    """AP effect of the component and gap in each pair, in logits, from the pairs' texts as any run has them."""
    effects, gaps = torch.zeros(len(pairs)), torch.zeros(len(pairs))
    with contrasts(model, pairs, baseline=baseline) as groups, torch.no_grad():
        for indices, question in groups:
            patched = question.patches(target.site, target.layer)(torch.tensor([target.index]))[:, 0]
            effects[list(indices)] = (patched - question.around.logit_diff).float().cpu()
            gaps[list(indices)] = question.gap.float().cpu()
    return effects, gaps


def _as_runs_have_it(
    model: TransformerBridge, best: Sequence[PromptPair], filled: Filled, target: Target
) -> dict[str, Number]:
    """Effect, gap, score and rank with the pairs made by hand and with the best ones; deletion and injection.

    Deletion is the effect of the component's mean over other prompts. A counterfactual whose effect has the other sign,
    or is over twice as large, does not take out what the component gives: it writes something in.
    """
    found: dict[str, Number] = {}
    for name, pairs in (("by_hand", list(filled.pairs)), ("best", list(best))):
        effects, gaps = _singly(model, pairs, target)
        scores = [
            e / g for e, g in zip(effects.tolist(), gaps.tolist(), strict=True) if scores_exist(g, pairs[0].min_gap)
        ]
        found |= {
            f"{name}/ap": effects.mean().item(),
            f"{name}/gap": gaps.mean().item(),
            f"{name}/score": float(np.mean(scores)) if scores else None,
            f"{name}/n_scored": len(scores),
        }
        if target.site == "heads":
            size = activation_patching(model, pairs, "heads").effect.abs()
            found[f"{name}/rank"] = int((size > size[target.layer, target.index]).sum()) + 1
    try:
        deletion = _singly(model, filled.pairs, target, "mean")[0].mean().item()
    except InputError as error:  # a tokenizer that does not know the reference prompts' words
        return found | {"deletion/ap": None, "deletion/ap/reason": str(error)}
    effect = float(str(found["best/ap"]))
    writes_in = effect * deletion < 0 or abs(effect) > 2 * abs(deletion)
    return found | {"deletion/ap": deletion, "deletion/writes_in": int(writes_in)}


def _held_out(
    model: TransformerBridge,
    heldout: Filled | None,
    target: Target,
    objective: Objective,
    best: Candidate,
    *,
    memory_gib: float | None,
    seed: int,
) -> dict[str, Number]:
    """The best candidate in clean prompts that the search has not seen: mean and 95% interval over them."""
    if heldout is None:
        return {"heldout/value": None, "heldout/value/reason": "heldout.n=0"}
    evaluator = Evaluator(model, heldout, target, memory_gib=memory_gib)
    effects = evaluator.effects([best], objective.measure)
    mean = objective.of(effects)
    signed = np.sign(float(effects.mean())) if objective.sign == "abs" else {"drop": -1.0, "raise": 1.0}[objective.sign]
    interval = bootstrap_means(signed * effects.double().numpy().T, seed=seed)
    hand = torch.cat([tokenize(model, pair).corrupted for pair in heldout.pairs])
    free = Evaluator(model, heldout.unshared(), target, memory_gib=memory_gib)
    by_hand = objective.of(free.effects_of(hand[:, None], objective.measure))
    return {
        "heldout/n": len(heldout.pairs),
        "heldout/value": float(mean[0]),
        "heldout/low": float(interval.low[0]),
        "heldout/high": float(interval.high[0]),
        "heldout/by_hand": float(by_hand[0]),
    }


def _top(space: Space, filled: Filled, ranked: Sequence[Tried]) -> list[Mapping[str, Number]]:
    """The best candidates of which any two differ in two words at least."""
    kept: list[Tried] = []
    for one in ranked:
        if len(kept) == TOP:
            break
        if all(
            sum(a != b for a, b in zip(one.proposal.candidate, o.proposal.candidate, strict=True)) > 1 for o in kept
        ):
            kept.append(one)
    return [
        {
            "rank": rank + 1,
            "value": one.value,
            "corrupted": filled.texts(one.proposal.candidate)[0],
            "rule": space.rule(one.proposal.candidate),
            "source": one.proposal.source,
        }
        for rank, one in enumerate(kept)
    ]
