"""How far to believe a search's best candidate: against chance, against harmless edits, on prompts it never saw.

Everything is evaluated here anew; effects are in logits, values the first term of the objective over clean prompts.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.attribution.activation_patching import activation_patching
from igap.attribution.maps import scores_exist
from igap.baselines import BaselineKind
from igap.contrast import contrasts
from igap.counterfactual.config import Bounds
from igap.counterfactual.history import Floats, History
from igap.counterfactual.objective.evaluator import Target
from igap.counterfactual.objective.objective import Objective, signs
from igap.counterfactual.samplers.base import draw
from igap.counterfactual.samplers.pareto import front
from igap.counterfactual.session import Search
from igap.counterfactual.spaces.base import KEEP, Candidate, Filled
from igap.counterfactual.spaces.template import build, fill, slot_names
from igap.counterfactual.trials.study import Tried
from igap.counterfactual.validation.importance import importance
from igap.counterfactual.validation.neighbours import LOOKED_AT, ROUNDING, Number, Row, ladder, simplest, single_edits
from igap.curves import OutputCurves, output_curve
from igap.errors import InputError
from igap.intervals import bootstrap_means
from igap.prompts import PromptPair, tokenize
from igap.sites import component_name

NEUTRAL = 64
"""Neutral edits that are drawn."""
TOP = 20
_NEUTRAL_SLOTS = {"place": "places", "verb": "verbs", "object": "objects", "other": "objects"}


@dataclass(frozen=True, eq=False)
class Certificate:
    """What is known about the best candidate."""

    candidate: Candidate
    pairs: tuple[PromptPair, ...]
    """The best pair of every clean prompt that it changes."""
    summary: Mapping[str, Number]
    tables: Mapping[str, Sequence[Row]]
    """`top`, `single_edits`, `ladder`, `slots`, `heads`, `front`: rows."""
    curves: Mapping[str, OutputCurves]
    """F along the component's path with the pairs made by hand (`by_hand`) and with the best ones (`best`)."""


def certify(search: Search, tried: Sequence[Tried]) -> Certificate:
    """The certificate of the best of these trials.

    Raises InputError where none has a value within the bounds, saying which bound took how many.
    """
    ranked = sorted((one for one in tried if one.counts), key=lambda one: -one.value)
    if not ranked:
        raise InputError(_none_is_left(tried))
    filled = search.filled.unshared()
    winner = next((one for one in ranked if filled.changed(one.proposal.candidate)), None)
    if winner is None:
        raise InputError("search: all corrupted prompts tried are the clean ones. Offer other words, or more trials.")
    best = winner.proposal.candidate
    free = search.remembering(filled)
    # Bounds choose among trials. Here every prompt gets its value, and a bound's numbers need not be computed. Of sign
    # `abs` all are measured in the winner's direction: what turns the effect round does not add to it.
    objective = replace(search.objective, bounds=Bounds())
    seen = objective.effects(free.measured(filled.tokens([best]), objective))
    if objective.sign == "abs" and objective.terms[0] != "disagreement":
        objective = replace(objective, sign="raise" if seen.mean() > 0 else "drop")

    def worths(rows: Sequence[Int[Tensor, "pair pos"]]) -> Floats:
        return free.worths(torch.stack(list(rows), 1), objective)

    hand = torch.cat([tokenize(search.model, pair).corrupted for pair in filled.pairs])
    value, by_hand = map(float, worths([filled.partly(best, range(len(filled.space.slots))), hand]))
    own = objective.effects(free.measured(hand[:, None], objective))
    summary: dict[str, Number] = {
        "best/value": value,
        "best/sign": objective.sign,
        "best/rule": search.space.rule(best),
        "best/trial": next(i for i, one in enumerate(tried) if one is winner),
        "best/source": winner.proposal.source,
        "best/edits": len(filled.changed(best)),
        "prompts/bos": search.leading or "none",
        "by_hand/value": by_hand,
        "by_hand/own": (own * signs(own, objective.sign))[0, 0].item(),
        **_against_chance(tried),
        **_neutral(search, objective),
        **_as_text(search, filled, best),
    }
    singles = single_edits(search, filled, objective, free, best, value)
    better = [float(str(row["value"])) for row in singles if row["allowed"]]
    summary |= {
        "single_edits/n": len(singles),
        "single_edits/of": sum(search.space.sizes) - len(search.space.sizes),
        "single_edits/better": sum(v > value + ROUNDING * abs(value) for v in better),
        "single_edits/best": max(better, default=None),
    }
    pairs = tuple(
        PromptPair(pair.clean, text, pair.answer, pair.distractor, pair.min_gap, bos=pair.bos)
        for pair, text in zip(filled.pairs, filled.texts(best), strict=True)
        if text != pair.clean
    )
    turn = {"raise": 1, "drop": -1, "abs": 0}[objective.sign]
    alike = [one for one in ranked[:LOOKED_AT] if turn * sum(one.effects) >= 0]
    steps = ladder(search, filled, worths, best, value, alike)
    slots = importance(filled, worths, best, value, tried)
    summary |= {f"ladder/{row['edits']}": row["value"] for row in steps}
    summary |= simplest(search, filled, worths, best, value)
    for row in slots:
        summary |= {
            f"slots/{row['slot']}/{name}": row[name] for name in ("loss", "variance_share", "variance_share_error")
        }
    as_runs, heads = _as_runs_have_it(search.model, pairs, search.filled.pairs, search.target)
    where = component_name(search.target.site, search.target.layer, search.target.index)
    return Certificate(
        candidate=best,
        pairs=pairs,
        summary=summary | as_runs | _held_out(search, objective, best, value),
        tables={
            "top": _top(search, ranked),
            "single_edits": singles,
            "ladder": steps,
            "slots": slots,
            "heads": heads,
            "front": _front(search, tried),
        },
        curves={
            "by_hand": output_curve(search.model, list(search.filled.pairs), where),
            "best": output_curve(search.model, list(pairs), where),
        },
    )


def _none_is_left(tried: Sequence[Tried]) -> str:
    n_failed = sum(bool(one.value != one.value) for one in tried)
    broken = Counter(name for one in tried for name in one.broken)
    parts = [f"constraints.{name} removed {n}" for name, n in broken.most_common()]
    parts += [f"{n_failed} failed ({next(one.reason for one in tried if one.value != one.value)})"] if n_failed else []
    return (
        f"search.space: none of {len(tried)} trials has a value within the bounds: {'; '.join(parts) or 'no trial'}. "
        "Loosen a bound, offer other words, or set a larger search.until."
    )


def _against_chance(tried: Sequence[Tried]) -> dict[str, Number]:
    """The best of the random trials, and of as many of the search's own first ones; None where none was random."""
    random = [one for one in tried if one.proposal.source in ("start", "random")]
    chosen = [one for one in tried if one.proposal.source != "random"][: len(random)]
    values = [one.value for one in random if one.counts]
    control = any(one.proposal.source == "random" for one in random)  # its own random starts compare with nothing
    return {
        "random/n": len(random),
        "random/best": max(values, default=None),
        "random/mean": float(np.mean(values)) if values else None,
        "random/search_at_equal_budget": max((o.value for o in chosen if o.counts), default=None) if control else None,
    }


def _neutral(search: Search, objective: Objective) -> dict[str, Number]:
    """What edits do that change no name: another place, verb or object; the 95th percentile of their |value|."""
    template, tokenizer = search.space.template, search.model.tokenizer
    names = [] if template is None else [slot for slot in slot_names(template) if slot in _NEUTRAL_SLOTS]
    if template is None or not names:
        return {"neutral/p95": None, "neutral/p95/reason": "no template with a place, a verb or an object"}
    lists = {name: [KEEP, _NEUTRAL_SLOTS[name]] if name in names else [KEEP] for name in slot_names(template)}
    pairs, prepend_bos = search.filled.pairs, bool(search.model.cfg.default_prepend_bos)
    try:
        space = build(template, lists, pairs[0], tokenizer, prepend_bos=prepend_bos)
    except InputError as error:  # no word of a list fits
        return {"neutral/p95": None, "neutral/p95/reason": str(error)}
    neutral = fill(space, pairs, tokenizer, prepend_bos=prepend_bos, device=search.filled.clean.device)
    drawn = draw(History(space, (), np.zeros((0, 1))), NEUTRAL, np.random.default_rng(search.seed))
    values = search.remembering(neutral).worths(neutral.tokens([one.candidate for one in drawn]), objective)
    return {"neutral/n": len(drawn), "neutral/p95": float(np.quantile(np.abs(values), 0.95))}


def _as_text(search: Search, filled: Filled, best: Candidate) -> dict[str, Number]:
    """How fluent the best prompts are beside the clean ones, and how unusual the component's activation is in them."""
    tokens = filled.tokens([best])
    free = search.remembering(filled)
    found: dict[str, Number] = {"best/fluency": free.numbers(tokens, ["fluency"])["fluency"].mean().item()}
    if search.ordinary is None:
        return found | {"best/percentile": None, "best/percentile/reason": "too few ordinary prompts of this kind"}
    return found | {"best/percentile": search.ordinary.percentile(free.evaluator, tokens).mean().item()}


def _singly(
    model: TransformerBridge, pairs: Sequence[PromptPair], target: Target, baseline: BaselineKind = "corrupted"
) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"], Float[Tensor, " pair"]]:
    """AP effect, gap, and the least gap that gives a score, of each pair, in logits, from its texts as in any run."""
    effects, gaps, least = torch.zeros(3, len(pairs))
    with contrasts(model, pairs, baseline=baseline, sites=(target.site,)) as groups, torch.no_grad():
        for indices, question in groups:
            patched = question.patches(target.site, target.layer)(torch.tensor([target.index]))[:, 0]
            effects[list(indices)] = (patched - question.around.logit_diff).float().cpu()
            gaps[list(indices)] = question.gap.float().cpu()
            least[list(indices)] = torch.tensor(question.least_gaps)
    return effects, gaps, least


def _as_runs_have_it(
    model: TransformerBridge, best: Sequence[PromptPair], by_hand: Sequence[PromptPair], target: Target
) -> tuple[dict[str, Number], list[Row]]:
    """Effect, gap, score and rank with the pairs made by hand and with the best ones; deletion and injection.

    Deletion is the effect of the component's mean over other prompts. A counterfactual whose effect has the other sign,
    or is over twice as large, does not take out what the component gives: it writes something in. Second, the AP effect
    of every head with either pairs.
    """
    found: dict[str, Number] = {}
    grids = {}
    for name, pairs in (("by_hand", by_hand), ("best", best)):
        effects, gaps, least = _singly(model, pairs, target)
        each = zip(effects.tolist(), gaps.tolist(), least.tolist(), strict=True)
        scores = [effect / gap for effect, gap, enough in each if scores_exist(gap, enough)]
        grids[name] = activation_patching(model, list(pairs), "heads").effect
        found |= {
            f"{name}/ap": effects.mean().item(),
            f"{name}/gap": gaps.mean().item(),
            f"{name}/score": float(np.mean(scores)) if scores else None,
            f"{name}/n_scored": len(scores),
        }
        if target.site == "heads":
            size = grids[name].abs()
            found[f"{name}/rank"] = int((size > size[target.layer, target.index]).sum()) + 1
    n_layers, n_heads = grids["best"].shape
    heads: list[Row] = [
        {
            "name": component_name("heads", layer, head),
            **{f"{name}/effect": grid[layer, head].item() for name, grid in grids.items()},
        }
        for layer in range(n_layers)
        for head in range(n_heads)
    ]
    try:
        deletion = _singly(model, by_hand, target, "mean")[0].mean().item()
    except InputError as error:  # a tokenizer that does not know the reference prompts' words
        return found | {"deletion/ap": None, "deletion/ap/reason": str(error)}, heads
    effect = float(str(found["best/ap"]))
    writes_in = effect * deletion < 0 or abs(effect) > 2 * abs(deletion)
    return found | {"deletion/ap": deletion, "deletion/writes_in": int(writes_in)}, heads


def _held_out(search: Search, objective: Objective, best: Candidate, value: float) -> dict[str, Number]:
    """The best candidate in clean prompts that the search has not seen: its value, and the mean effect's 95% interval.

    An effect that turns counts against it.
    """
    if search.heldout is None:
        return {"heldout/value": None, "heldout/value/reason": "heldout.n=0"}
    here = search.heldout.unshared()
    remembered = search.remembering(here)
    tokens = torch.stack(
        [
            here.partly(best, range(len(here.space.slots))),
            torch.cat([tokenize(search.model, pair).corrupted for pair in here.pairs]),
        ],
        1,
    )
    measured = remembered.measured(tokens, objective)
    values = objective.values(measured)[:, 0]
    effects = objective.effects(measured)
    signed = effects if objective.terms[0] == "disagreement" else effects * signs(effects, objective.sign)
    interval = bootstrap_means(signed[:1].double().numpy().T, seed=search.seed)
    return {
        "heldout/n": len(here.pairs),
        "heldout/value": float(values[0]),
        "heldout/share": float(values[0]) / value if value and objective.aggregate == "mean" else None,
        "heldout/mean": signed[0].mean().item(),
        "heldout/low": float(interval.low[0]) if np.isfinite(interval.low[0]) else None,
        "heldout/high": float(interval.high[0]) if np.isfinite(interval.high[0]) else None,
        "heldout/by_hand": float(values[1]),
    }


def _top(search: Search, ranked: Sequence[Tried]) -> list[Row]:
    """The best candidates of which any two differ in two words at least; in spaces of one slot, in one."""
    kept: list[Tried] = []
    apart = min(2, len(search.space.slots))
    for one in ranked:
        if len(kept) == TOP:
            break
        if all(
            sum(a != b for a, b in zip(one.proposal.candidate, o.proposal.candidate, strict=True)) >= apart
            for o in kept
        ):
            kept.append(one)
    return [{"rank": rank + 1, **_row(search, one)} for rank, one in enumerate(kept)]


def _front(search: Search, tried: Sequence[Tried]) -> list[Row]:
    """Trials that no other beats in every term, of a Pareto study."""
    if len(search.objective.terms) == 1:
        return []
    return [_row(search, tried[i]) for i in front(search.trials.history(tried).points)]


def _row(search: Search, one: Tried) -> Row:
    return {
        **dict(zip(search.objective.terms, one.values, strict=True)),
        "corrupted": search.filled.texts(one.proposal.candidate)[0],
        "rule": search.space.rule(one.proposal.candidate),
        "source": one.proposal.source,
    }
