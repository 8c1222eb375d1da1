"""A validation as files have it: flat names to numbers and texts, and tables of rows. Names are written here only."""

from collections.abc import Mapping, Sequence

from igap.counterfactual.validation.optimality import Optimality
from igap.counterfactual.validation.results import EstimatorError, PairEffects, RankedPrompt, Validation, WhatFollows
from igap.errors.missing import Missing, or_none

Scalar = float | int | str | None
Summary = dict[str, Scalar]
Rows = list[dict[str, Scalar]]


def flatten(validation: Validation) -> Summary:
    """The validation's numbers by their names in `search_summary.json`, W&B and `scan.csv`.

    A number that is not defined is null, with its reason under NAME/reason.
    """
    best, random, edits = validation.best, validation.random, validation.single_edits
    neutral, deletion, heldout = validation.neutral, validation.deletion, validation.heldout
    numbers: dict[str, Scalar | Missing] = {
        "best/value": best.value,
        "best/sign": best.sign,
        "best/rule": best.rule,
        "best/trial": best.trial,
        "best/source": best.source,
        "best/edits": best.edits,
        "prompts/bos": validation.leading or "none",
        "by_hand/value": validation.reference.value,
        "by_hand/own": validation.reference.own,
        "random/n": random.n,
        "random/best": random.best,
        "random/mean": random.mean,
        "random/search_at_equal_budget": random.search_at_equal_budget,
    }
    if isinstance(neutral, Missing):
        numbers["neutral/p95"] = neutral
    else:
        numbers |= {"neutral/n": neutral.n, "neutral/p95": neutral.p95}
    numbers |= {
        "best/fluency": validation.plausibility.fluency,
        "best/percentile": validation.plausibility.percentile,
        **_downstream(validation.plausibility.downstream),
        "single_edits/n": len(edits.edits),
        "single_edits/of": edits.n_possible,
        "single_edits/better": edits.n_better,
        "single_edits/best": edits.best,
        **{f"ladder/{step.edits}": step.value for step in validation.by_edit_count},
        **{f"ladder/{step.edits}/allowed": int(not step.rejection) for step in validation.by_edit_count},
        "simplest/edits": validation.pruned.edits,
        "simplest/value": validation.pruned.value,
        "simplest/words": validation.pruned.words,
        "simplest/allowed": int(not validation.pruned.rejection),
    }
    for slot in validation.slots:
        numbers |= {
            f"slots/{slot.slot}/loss": slot.loss,
            f"slots/{slot.slot}/variance_share": slot.variance_share,
            f"slots/{slot.slot}/variance_share_error": slot.variance_share_error,
        }
    numbers |= _pair_effects("by_hand", validation.reference_effects)
    numbers |= _pair_effects("best", validation.best_effects)
    if isinstance(deletion, Missing):
        numbers["deletion/ap"] = deletion
    else:
        numbers |= {
            "deletion/ap": deletion.ap,
            "deletion/injected": deletion.injected,
            "deletion/writes_in": int(deletion.is_injection),
        }
    if validation.error is not None:
        numbers |= _error(validation.error)
    if isinstance(heldout, Missing):
        numbers["heldout/value"] = heldout
    else:
        numbers |= {
            "heldout/n": heldout.n,
            "heldout/value": heldout.value,
            "heldout/share": heldout.share,
            "heldout/mean": heldout.mean,
            "heldout/low": heldout.low,
            "heldout/high": heldout.high,
            "heldout/by_hand": heldout.reference,
        }
    summary: Summary = {}
    for name, number in numbers.items():
        summary |= number.to_flat(name) if isinstance(number, Missing) else {name: number}
    return summary


def flatten_optimality(optimality: Optimality | Missing | None) -> Summary:
    """How many prompts of the space are better, by its names; nothing where that was not asked for."""
    if optimality is None:
        return {}
    if isinstance(optimality, Missing):
        return {**optimality.to_flat("optimality/upper")}
    share = optimality.share
    known = share.to_flat("optimality/share") if isinstance(share, Missing) else {"optimality/share": share}
    return {**known, "optimality/upper": optimality.upper, "optimality/n": optimality.n_evaluations}


def _downstream(after: WhatFollows | Missing) -> Mapping[str, Scalar | Missing]:
    if isinstance(after, Missing):
        return {"best/downstream": after}
    return {
        "best/downstream": after.percentile,
        "best/downstream_layer": after.layer,
        "best/downstream_at_layer": after.at_layer,
        "best/downstream_unpatched": after.unpatched,
    }


def _pair_effects(name: str, effects: PairEffects) -> Mapping[str, Scalar | Missing]:
    return {
        f"{name}/ap": effects.ap,
        f"{name}/gap": effects.gap,
        f"{name}/score": effects.score,
        f"{name}/n_scored": effects.n_scored,
        f"{name}/rank": effects.rank,
    }


def _error(error: EstimatorError) -> Mapping[str, Scalar | Missing]:
    terms = {"terms": error.terms} if isinstance(error.terms, Missing) else error.terms
    return {
        "error/component": error.component,
        "error/estimator": error.estimator,
        "error/estimate": error.estimate,
        "error/ap": error.ap,
        **{f"error/{term}": value for term, value in terms.items()},
        "error/dominant": error.dominant,
        "error/n_ordinary": len(error.ordinary),
        "error/n_at_half": error.n_at_half,
        "error/share_at_half": error.share_at_half,
        "error/share_at_half_high": error.share_at_half_high,
        "error/percentile": error.percentile,
    }


def tables(validation: Validation, terms: Sequence[str]) -> dict[str, Rows]:
    """The rows of each CSV file by the file's name; `terms` are the objective's, which name the columns of prompts."""
    return {
        "top": [{"rank": rank, **_prompt(row, terms)} for rank, row in enumerate(validation.top, start=1)],
        "single_edits": [
            {"slot": edit.slot, "option": edit.option, "value": edit.value, "allowed": int(edit.allowed)}
            for edit in validation.single_edits.edits
        ],
        "ladder": [
            {
                "edits": step.edits,
                "value": step.value,
                "share": or_none(step.share),
                "words": step.words,
                "allowed": int(not step.rejection),
            }
            for step in validation.by_edit_count
        ],
        "slots": [
            {
                "slot": slot.slot,
                "word": slot.word,
                "value_without": slot.value_without,
                "loss": slot.loss,
                "variance_share": or_none(slot.variance_share),
                "variance_share_error": or_none(slot.variance_share_error),
            }
            for slot in validation.slots
        ],
        "heads": [
            {
                "name": head.name,
                "by_hand/effect": head.reference,
                "best/effect": head.best,
                **({} if head.heldout is None else {"heldout/effect": head.heldout}),
            }
            for head in validation.heads
        ],
        "front": [_prompt(row, terms) for row in validation.front],
    }


def _prompt(row: RankedPrompt, terms: Sequence[str]) -> dict[str, Scalar]:
    values = dict(zip(terms, row.values, strict=True))
    return {**values, "corrupted": row.corrupted, "rule": row.rule, "source": row.source}
