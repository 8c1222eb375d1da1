"""Warnings of a run, each with its remedy: missing scores, answers that may be swapped, rounding, incomplete integrals,
missing spaces, rows left out, settings that change nothing."""

from collections.abc import Mapping, Sequence

from igap.attribution.maps import AttributionMap, scores_exist
from igap.components import Site
from igap.config import Idle, RunConfig
from igap.inputs.prompts import SCORED_SHARE, TokenPair, min_scored_gap

DELTA_TOLERANCE = 0.01
"""Share of a layer's effect above which its completeness delta is worth a warning."""


def least_gaps(config: RunConfig, clean: Sequence[float]) -> list[float]:
    """The absolute gap below which each pair has no scores, from their F(clean), in F's unit.

    The logit difference has a zero to which a gap can be compared; of other metrics `prompts.min_gap` alone counts.
    """
    return [min_scored_gap(config.prompts.min_gap, x if config.metric.is_default else 0.0) for x in clean]


def n_unscored(config: RunConfig, clean: Sequence[float], gaps: Sequence[float]) -> int:
    """Number of pairs whose gap is too small to divide by, from their F(clean) and gaps in F's unit."""
    return sum(not scores_exist(gap, least) for gap, least in zip(gaps, least_gaps(config, clean), strict=True))


def run_warnings(
    config: RunConfig,
    clean: Sequence[float],
    gaps: Sequence[float],
    maps: Mapping[Site, Mapping[str, AttributionMap]],
) -> tuple[str, ...]:
    """The warnings of a run with these F(clean) and gaps, in F's unit, and these maps."""
    coarse = config.model.dtype == "bfloat16"
    rounding = (
        "model.dtype: bfloat16 keeps 8 bits of a logit; effects and completeness deltas below some hundredths of a "
        "logit are rounding. Use model.dtype=float32 for numbers that count."
    )
    texts = [_small_gaps(config, clean, gaps, maps), _warn_swapped(config, clean, gaps)]
    texts += [rounding if coarse else ""]
    texts += ["" if coarse else _incomplete(config, site, by_method["ig"]) for site, by_method in maps.items()]
    texts += [_without_effect(idle) for idle in config.idle]
    return tuple(filter(None, texts))


def _without_effect(idle: Idle) -> str:
    """The warning that settings change nothing, as they are typed."""
    typed = [f"{key}={_format_value(value)}" for key, value in idle.values.items()]
    return f"{', '.join(typed)} {'changes' if len(typed) == 1 else 'change'} nothing: {idle.reason}."


def _format_value(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def left_out_warnings(reasons: Sequence[str], n_pairs: int) -> tuple[str, ...]:
    """The warning that rows of a file were left out, with their number and the reason for one."""
    if not reasons:
        return ()
    n_rows = len(reasons) + n_pairs
    return (
        f"prompts.skip_invalid: {len(reasons)} of {n_rows} rows do not fit and are left out. For example: {reasons[0]}",
    )


def spacing_warnings(pairs: Sequence[TokenPair]) -> tuple[str, ...]:
    """The warning that a space may be missing before answers or distractors, of all pairs in one line."""
    texts = [caution for pair in pairs for caution in pair.cautions]
    more = f" The same may hold for {len(texts) - 1} more." if len(texts) > 1 else ""
    return (texts[0] + more,) if texts else ()


def _small_gaps(
    config: RunConfig,
    clean: Sequence[float],
    gaps: Sequence[float],
    maps: Mapping[Site, Mapping[str, AttributionMap]],
) -> str:
    """The warning that scores are missing, for all pairs or for some; empty if none are."""
    unscored, unit = n_unscored(config, clean, gaps), _unit(maps)
    if not unscored:
        return ""
    if len(gaps) == 1:
        what = f"the gap F(clean) - F(corrupted) is {gaps[0]:.4g} {unit}, F(clean) {clean[0]:.4g}"
    else:
        what = f"the gap F(clean) - F(corrupted) of {unscored} of {len(gaps)} pairs is too small"
    share = f" and {SCORED_SHARE:.0%} of |F(clean)|" if config.metric.is_default else f" {unit}"
    text = f"prompts: {what}, wanted at least prompts.min_gap={config.prompts.min_gap}{share}; "
    if unscored == len(gaps):
        return (
            f"{text}scores (effect / gap) would explode and are missing, effects in {unit} are kept. Choose "
            "prompts that the model tells apart."
        )
    return (
        f"{text}they have no scores (effect / gap), which would explode, and mean scores and their intervals leave "
        f"them out; mean effects in {unit} do not. pairs.csv lists every gap."
    )


def _unit(maps: Mapping[Site, Mapping[str, AttributionMap]]) -> str:
    """F's unit."""
    return next((each.unit for by_method in maps.values() for each in by_method.values()), "logits")


def _warn_swapped(config: RunConfig, clean: Sequence[float], gaps: Sequence[float]) -> str:
    """The warning that the model gives each prompt the other's word, in pairs that have scores; empty if in none."""
    if not config.metric.is_default:
        return ""
    signs = [
        (index, x, x - gap)
        for index, (x, gap) in enumerate(zip(clean, gaps, strict=True))
        if x < 0 < x - gap and not n_unscored(config, [x], [gap])
    ]
    if not signs:
        return ""
    index, x, y = signs[0]
    several = f"in {len(signs)} of {len(gaps)} pairs " if len(gaps) > 1 else ""
    first = f"pair {index}: " if several else ""
    doubt = (
        "the model does not do the task there."
        if config.prompts.n is not None
        else "are answer and distractor swapped?"
    )
    return (
        f"prompts: {several}the model prefers the distractor on the clean prompt ({first}F = {x:+.2f}) and the answer "
        f"on the corrupted one (F = {y:+.2f}): {doubt}{' pairs.csv lists F of every pair.' if several else ''}"
    )


def _incomplete(config: RunConfig, site: Site, ig: AttributionMap) -> str:
    """The warning that a completeness delta is too large, with the worst layer (and pair); empty if none is."""
    each = ig.pairs or (ig,)
    layers = [of_pair.incomplete_layers(DELTA_TOLERANCE) for of_pair in each]
    deltas = [
        (
            abs(float(of_pair.delta[layer])),
            float(of_pair.delta[layer]),
            float(of_pair.layer_effect[layer]),
            layer,
            index,
        )
        for index, of_pair in enumerate(each)
        if of_pair.delta is not None and of_pair.layer_effect is not None
        for layer in layers[index]
    ]
    if not deltas:
        return ""
    _, delta, effect, layer, index = max(deltas)
    named = sorted({layer for _, _, _, layer, _ in deltas})
    in_pairs = f"in {sum(map(bool, layers))} of {len(each)} pairs; " if ig.pairs else ""
    place = f" of pair {index}" if ig.pairs else ""
    return (
        f"ig: the completeness delta of {site} is above {DELTA_TOLERANCE:.0%} of the layer's effect in "
        f"layer{'s' * (len(named) > 1)} {', '.join(map(str, named))} ({in_pairs}worst: {delta:+.3g} of "
        f"{effect:+.3g} {ig.unit} in layer {layer}{place}). "
        + (
            "No number of steps tried was enough: the path has a kink or a jump there."
            if config.ig.n_steps == "auto"
            else f"Use ig.n_steps=auto, or more steps: ig.n_steps={4 * config.ig.n_steps}."
        )
    )
