"""A search's verdict in words. The rest of `validation` measures; here alone are thresholds that make words of it."""

from igap.counterfactual.objective.objective import Objective
from igap.counterfactual.validation.results import EstimatorError, HeldOut, Validation
from igap.errors.missing import Missing
from igap.statistics.bootstrap import LEVEL, is_range

HALF = 0.5
"""Share of the value found of which less than that on held-out prompts is "in part"."""
UNUSUAL = 100 * LEVEL
"""Percentile of the activation above which it is unusual."""
_NAMED = 3
"""Heads with larger effects that are named."""


def verdict(validation: Validation, component: str, objective: Objective) -> tuple[str, str, str]:
    """Say whether the component stands out, whether its effect holds on held-out prompts, and what kind it is.

    - It *stands out* if no head has a larger |AP effect| in the best pairs: rank 1. The question is which prompt makes
      this one stand out, so that a second place is not enough; the heads before it are named, the largest three.
    - The effect *holds* if the 95% interval of its held-out mean lies above 0 in the direction of the best prompt, and
      so does the held-out value. It holds *in part* if less than half of the value found is left: most of that was
      then fitted to the search's own clean prompts. An interval over fewer than 4 prompts is about their range and
      decides nothing; a value found that is not above 0 leaves nothing to hold. A held-out value that is no larger
      than the pairs made by hand have is told as such. A `disagreement` is never negative, so that its share and the
      pairs made by hand alone can object.
    - It is an *injection* if what is written in is larger in magnitude than the deletion: `Deletion.is_injection`.
    - The activation is *unusual* above percentile 95: farther from the usual ones than 19 in 20 ordinary prompts'.
      Where it is not, what follows the patch may be, by the same rule.

    Of a search for errors of an estimator the first sentence says where it is wrong and which term of the chain to AP
    it is most of, the third how many ordinary prompts have at least half that error.

    Args:
        validation: of the search.
        component: the target's name, "9.6", "L5.N1234" or "9.6+9.9@S2".
        objective: what was searched for.

    Returns:
        Three sentences. Numbers that are missing say why.
    """
    if validation.error is not None:
        return (
            _wrong(validation, validation.error, objective),
            _holds(validation, objective),
            f"{_how_rare(validation.error)}; {_activation(validation)}.",
        )
    return (
        _against_heads(validation, component, objective.unit),
        _holds(validation, objective),
        f"{_kind(validation, component, objective.unit)}; {_activation(validation)}.",
    )


def stands_out(validation: Validation) -> bool | Missing:
    """True if the component has an effect in the best pairs, and no head a larger one in magnitude."""
    effects = validation.best_effects
    return effects.rank if isinstance(effects.rank, Missing) else effects.rank == 1 and effects.ap != 0


def decimals(value: float) -> str:
    """Three decimals; zero has no sign."""
    text = f"{value:.3f}"
    return "0.000" if text == "-0.000" else text


def format_signed(value: float) -> str:
    """Three decimals with a sign; zero has a plus."""
    return f"{'' if decimals(value).startswith('-') else '+'}{decimals(value)}"


def _against_heads(validation: Validation, component: str, unit: str) -> str:
    best, by_hand = validation.best_effects, validation.reference_effects
    where = "the best prompts" if len(validation.pairs) > 1 else "the best prompt"
    if isinstance(best.rank, Missing):
        return (
            f"Whether {component} stands out is not known: {best.rank.reason}; its AP effect is {decimals(best.ap)} "
            f"{unit} in {where}, {decimals(by_hand.ap)} in those made by hand."
        )
    before = f"made by hand: {decimals(by_hand.ap)}, rank {by_hand.rank}"
    if best.ap == 0:
        return f"{component} does not stand out: it has no effect in {where} ({before})."
    if stands_out(validation):
        own = f"{decimals(best.ap)} {unit}; {before}"
        return f"{component} stands out: no head has a larger |AP effect| in {where} ({own})."
    larger = sorted(validation.heads, key=lambda head: -abs(head.best))[: best.rank - 1]
    *others, last = (f"{head.name} ({decimals(head.best)})" for head in larger[:_NAMED])
    named = f"{', '.join(others)} and {last}" if others else last
    own = decimals(best.ap) if unit == "logits" else f"{decimals(best.ap)} {unit}"
    have = f"{len(larger)} heads have" if len(larger) > 1 else "1 head has"
    return (
        f"{component} does not stand out: {have} a larger |AP effect| in {where}, {named}"
        f"{' most' if len(larger) > _NAMED else ''} (its own: {own}, rank {best.rank}; {before})."
    )


def _wrong(validation: Validation, error: EstimatorError, objective: Objective) -> str:
    """Where the estimator is most wrong, by how much, and by which term."""
    value, n, unit = validation.best.value, len(validation.pairs), objective.unit
    size = "an error" if n == 1 else f"a {objective.aggregate} |error|"
    over = f", in the mean over {n} clean prompts" if n > 1 and objective.aggregate == "mean" else ""
    means = f", means over {n} clean prompts," if n > 1 and objective.aggregate != "mean" else ""
    magnitude = "" if error.signed else " (a magnitude)"
    said = (
        f"{error.estimator} is most wrong at {error.component}{over}: it says {decimals(error.estimate)} "
        f"{unit}{magnitude} where activation patching has {decimals(error.ap)}{means or ','} {size} "
        f"of {decimals(value)} (made by hand: {decimals(validation.reference.value)})"
    )
    if isinstance(error.terms, Missing) or isinstance(error.dominant, Missing):
        return f"{said}."
    difference = error.ap - error.estimate
    most = error.terms[error.dominant]
    share = f", {round(100 * most / difference)}% of the difference" if difference else ""
    return f"{said}, most of it {error.dominant} ({format_signed(most)}{share})."


def _how_rare(error: EstimatorError) -> str:
    n, share, high = len(error.ordinary), error.share_at_half, error.share_at_half_high
    if isinstance(share, Missing) or isinstance(high, Missing) or isinstance(error.percentile, Missing):
        reason = share.reason if isinstance(share, Missing) else "there are none"
        return f"How often ordinary prompts come near is not known: {reason}"
    most = "" if high == share else f"; in the whole space at most {100 * high:.1f}% (95%)"
    return (
        f"Of {n} ordinary prompts {error.n_at_half} {'has' if error.n_at_half == 1 else 'have'} at least half that "
        f"error ({100 * share:.1f}%{most}), and {error.percentile:.0f}% a smaller one"
    )


def _holds(validation: Validation, objective: Objective) -> str:
    heldout, what = validation.heldout, "effect" if validation.error is None else "error"
    if isinstance(heldout, Missing):
        return f"Whether the {what} holds on other prompts is not known: {heldout.reason}."
    if validation.best.value <= 0:
        best = decimals(validation.best.value)
        return f"There is nothing that could hold on other prompts: the value found, {best}, is not above 0."
    measured = _describe_effect(validation, heldout, objective)
    prompts = f"{heldout.n} held-out prompt{'s' if heldout.n > 1 else ''}"
    if isinstance(heldout.low, Missing) or is_range(heldout.n):
        few = "are too few" if heldout.n > 1 else "is too few"
        return f"Whether the {what} holds on other prompts is not known: {prompts} {few} to tell ({measured})."
    if heldout.low <= 0 or heldout.value <= 0:
        return f"The {what} does not hold on {prompts}: {measured}."
    in_part = not isinstance(heldout.share, Missing) and heldout.share < HALF
    no_more = "" if heldout.value > heldout.reference else (
        f", which is no more than the pairs made by hand have there ({decimals(heldout.reference)})"
    )  # fmt: skip
    return f"The {what} holds {'in part ' if in_part else ''}on {prompts}: {measured}{no_more}."


def _describe_effect(validation: Validation, heldout: HeldOut, objective: Objective) -> str:
    """The mean held-out effect with its interval, the value where it is another number, and its share."""
    term, sign = objective.terms[0], validation.best.sign
    if term in ("ap", "selectivity"):
        mean = f"a mean {'drop' if sign == 'drop' else 'rise'} of {decimals(heldout.mean)} {objective.unit}"
    else:
        mean = f"a mean {term} of {decimals(heldout.mean)} {objective.unit}"
    if not isinstance(heldout.low, Missing) and not isinstance(heldout.high, Missing):
        mean += f" [{decimals(heldout.low)}, {decimals(heldout.high)}]"
    if term not in ("ap", "selectivity") and sign == "drop":
        mean += ", drop being positive"
    if objective.aggregate != "mean" or term == "selectivity":
        mean += f", {objective.aggregate} {term} {decimals(heldout.value)}"
    best = decimals(validation.best.value)
    if isinstance(heldout.share, Missing):
        return f"{mean} ({best} were found; no share of that, since {heldout.share.reason})"
    return f"{mean}, {round(100 * heldout.share)}% of the {best} found"


def _kind(validation: Validation, component: str, unit: str) -> str:
    deletion, effect = validation.deletion, validation.best_effects.ap
    if isinstance(deletion, Missing):
        return f"Whether it is an injection or a deletion is not known: {deletion.reason.rstrip('.')}"
    if effect == 0:
        return "It is neither an injection nor a deletion, since there is no effect"
    return (
        f"It is {'an injection' if deletion.is_injection else 'a deletion'}: of the AP effect of {decimals(effect)} "
        f"{unit}, taking out what {component} gives (its mean instead) does {decimals(deletion.ap)} and what is "
        f"written in {decimals(deletion.injected)} ({round(100 * deletion.injected / effect)}%)"
    )


def _activation(validation: Validation) -> str:
    percentile = validation.plausibility.percentile
    if isinstance(percentile, Missing):
        return f"whether its activation is unusual is not known: {percentile.reason}"
    unusual = percentile > UNUSUAL
    own = f"its activation is {'unusual' if unusual else 'ordinary'} (percentile {percentile:.0f})"
    after = validation.plausibility.downstream
    if isinstance(after, Missing):
        return own
    stream = f"the residual stream after it (percentile {after.percentile:.0f}"
    if after.percentile > UNUSUAL:
        stream += f", farthest after layer {after.layer}"
    stream += f"; {after.unpatched:.0f} without the patch)"
    if unusual == (after.percentile > UNUSUAL):
        return f"{own}, and so is {stream}"
    return f"{own}, but not {stream}" if unusual else f"{own}, but {stream.replace(' (', ' is unusual (', 1)}"
