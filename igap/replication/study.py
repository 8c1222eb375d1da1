"""The notebook's figures from the runs of one study: published, recomputed, and as its own code gives them.

Nothing here runs the model but the replay of the notebook's code, which takes a few gradients and patches.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float64
from transformer_lens.model_bridge import TransformerBridge

from igap.analyses.ablation.by_kind import AblationsByKind
from igap.attribution import AttributionMap, activation_patching
from igap.components import SITES, Site, component_name, parse_component
from igap.engine.open_pairs import contrast
from igap.pipeline import Result
from igap.replication import original_code, published
from igap.statistics.comparison import compare

COLUMNS = ("this run", "printed code", "earlier metric")
"""Right; as the printed code computes it (first node only); as its earlier metric did (integral over 50)."""

TOLERANCE = 0.01
"""Share of a published figure by which a recomputed one may differ, beside one unit of the last digit printed."""

Cell = float | str | None


@dataclass(frozen=True)
class Row:
    """One figure of the notebook."""

    figure: str
    published: Cell
    """None where the notebook gives none for this model."""
    cells: Mapping[str, Cell]
    source: str
    """Which column computes what was published."""
    why: str
    """Why the columns differ; empty where they do not."""
    digits: int = 4
    """Decimals that were published."""

    @property
    def agrees(self) -> bool | None:
        """Whether the published figure is met, None where there is nothing to compare."""
        ours = self.cells.get(self.source)
        if self.published is None or ours is None:
            return None
        if isinstance(self.published, str) or isinstance(ours, str):
            return self.published == ours
        return abs(ours - self.published) <= max(TOLERANCE * abs(self.published), 10.0**-self.digits)


@dataclass(frozen=True, eq=False)
class Study:
    """The figures of one study."""

    rows: tuple[Row, ...]
    comparable: bool
    """Whether the model and the pair are those of the notebook, so that its figures apply."""

    def summary(self) -> dict[str, float | int | str | None]:
        """The numbers of figures compared and of those that agree, and the names of those that do not."""
        verdicts = [row.agrees for row in self.rows if row.agrees is not None]
        differing = [row.figure for row in self.rows if row.agrees is False]
        return {
            "notebook/n_compared": len(verdicts),
            "notebook/n_agree": sum(verdicts),
            "notebook/differ": ", ".join(differing),
        }

    def tables(self) -> dict[str, pd.DataFrame]:
        """One row a figure."""
        rows = [
            {
                "figure": row.figure,
                "published": self.find_published(row),
                **row.cells,
                "agrees": {True: "yes", False: "no", None: ""}[row.agrees],
                "published is": row.source,
                "why": row.why,
            }
            for row in self.rows
        ]
        return {"published": pd.DataFrame(rows)}

    def find_published(self, row: Row) -> Cell:
        """The published figure, or why there is none."""
        return row.published if self.comparable or row.published is not None else "GPT-2 small only"

    def sentences(self) -> tuple[str, ...]:
        """Whether the published figures are met."""
        if not self.comparable:
            return (
                "notebook: what it published is of GPT-2 small; published.csv has what its code gives on this model",
            )
        numbers = self.summary()
        differ = f"; not: {numbers['notebook/differ']}" if numbers["notebook/differ"] else ""
        agree, compared = numbers["notebook/n_agree"], numbers["notebook/n_compared"]
        return (f"notebook: {agree} of {compared} published figures agree{differ}",)


def study(model: TransformerBridge, first: Result, zero: Result, second: Result) -> Study:
    """The study of three finished runs: the pair with the corrupted and the zero baseline, and the second pair."""
    comparable = first.config.model.circuit == "ioi" and first.pairs[0].texts == published.FIRST
    replayed = {
        (name, site): {
            "printed code": original_code.first_node(model, first.pairs[0], site, result.config.baseline.kind),
            "earlier metric": original_code.mean_over_steps(result.maps[site]["ig"]),
        }
        for name, result in (("zero", zero), ("corrupted", first))
        for site in SITES
    }
    rows = [
        *_logit_differences(first),
        *_agreement({"zero": zero, "corrupted": first}, replayed),
        *_outliers(model, first, replayed["corrupted", "heads"], comparable),
        *_ablations(model, first, replayed["corrupted", "heads"], comparable),
        *_second_pair(model, first, second, comparable),
        *_deltas({"zero": zero, "corrupted": first}, replayed, comparable),
    ]
    if not comparable:
        rows = [Row(row.figure, None, row.cells, row.source, row.why, row.digits) for row in rows]
    return Study(tuple(rows), comparable)


def _logit_differences(first: Result) -> Iterator[Row]:
    for name in ("clean", "corrupted"):
        value = getattr(first, f"{name}_logit_diff")
        cells: dict[str, Cell] = dict.fromkeys(COLUMNS, value)
        yield Row(f"logit difference, {name}", published.FIGURES[f"{name}_logit_diff"], cells, "this run", "", digits=3)


_SCALE_ONLY = "The integral over 50 has the correlation and the ranks of the integral."
_FIRST_NODE = "The printed code keeps one of 50 gradients, at the clean end: attribution patching, times a constant."


def _agreement(
    results: Mapping[str, Result], replayed: Mapping[tuple[str, Site], Mapping[str, AttributionMap]]
) -> Iterator[Row]:
    for name, result in results.items():
        for site in reversed(SITES):
            compared = {c: compare(m, result.maps[site]["ap"]) for c, m in replayed[name, site].items()}
            cells: dict[str, Cell] = {
                "this run": result.comparisons[site].pearson,
                **{column: each.pearson for column, each in compared.items()},
            }
            figure = f"Pearson r of IG ({name} baseline) and AP, {site}"
            key = f"pearson.{name}.{site}"
            yield Row(figure, published.FIGURES[key], cells, "earlier metric", f"{_FIRST_NODE} {_SCALE_ONLY}")
        compared = {c: compare(m, result.maps["neurons"]["ap"]) for c, m in replayed[name, "neurons"].items()}
        cells = {
            "this run": result.comparisons["neurons"].jaccard_at(30),
            **{column: each.jaccard_at(30) for column, each in compared.items()},
        }
        figure = f"Jaccard of the top 30 neurons, {name} baseline"
        yield Row(figure, published.FIGURES[f"jaccard.{name}"], cells, "earlier metric", _FIRST_NODE)


def _outliers(
    model: TransformerBridge, first: Result, replayed: Mapping[str, AttributionMap], comparable: bool
) -> Iterator[Row]:
    ap = first.maps["heads"]["ap"]
    n_tokens, d_model = first.tokens[0].clean.shape[1], int(model.cfg.d_model)
    compared = {
        "this run": first.comparisons["heads"],
        **{c: compare(original_code.to_displayed_unit(m, n_tokens, d_model), ap) for c, m in replayed.items()},
    }
    why = (
        "The notebook subtracts means over 17 x 768 numbers, times 1e5, from scores; sums in logits over the gap have "
        "AP's unit and need no factor."
    )
    named: dict[str, Cell] = {}
    spread: dict[str, Cell] = {}
    for column in COLUMNS:
        comparison = compared[column]
        named[column] = " ".join(f"{layer}.{head}" for layer, head in np.argwhere(comparison.outlier_abs))
        spread[column] = float(np.abs(comparison.difference).std())
    yield Row("outlier heads", " ".join(published.OUTLIERS), named, "earlier metric", why)
    yield Row("SD of |AP - IG|, heads", published.FIGURES["sd"], spread, "earlier metric", why, digits=6)
    heads = published.OUTLIERS if comparable else str(named["this run"]).split()
    figures = published.OUTLIER_AP if comparable else [None] * len(heads)
    for head, figure in zip(heads, figures, strict=True):
        _, layer, index = parse_component(head)
        cells: dict[str, Cell] = dict.fromkeys(COLUMNS, float(ap.score[layer, index]))
        yield Row(f"AP of head {head}", figure, cells, "this run", "", digits=5)


_OTHER_PROMPTS = (
    "The notebook counts prompts whose answer is in the first word of three greedy tokens, on its own 10,000 prompts "
    "(ablation.file=ioi_dataset.json); this run takes the next token."
)


def _ablations(
    model: TransformerBridge, first: Result, replayed: Mapping[str, AttributionMap], comparable: bool
) -> Iterator[Row]:
    ablation = first.findings.get("ablation")
    if not isinstance(ablation, AblationsByKind) or not {"zero", "mean"} <= ablation.kinds.keys():
        return
    zero = ablation.kinds["zero"]
    names = [each.name for each in zero.single]
    quoted = dict(zip(published.OUTLIERS, published.ZERO_ABLATED, strict=True)) if comparable else {}
    yield _accuracy_row("performance, nothing ablated", published.FIGURES["performance"], zero.accuracy, zero.generated)
    for each in zero.single:
        figure = f"performance after zero ablation of head {each.name}"
        yield _accuracy_row(figure, quoted.get(each.name), each.accuracy, each.generated)
    n_tokens, d_model = first.tokens[0].clean.shape[1], int(model.cfg.d_model)
    places = [parse_component(name)[1:] for name in names]
    ap = np.array(ablation.scores["ap"])
    scores = {"this run": {"ig": np.array(ablation.scores["ig"]), "ap": ap}}
    for column, attribution in replayed.items():
        effect = original_code.average(attribution, n_tokens, d_model).effect
        scores[column] = {"ig": np.array([float(effect[place]) for place in places]), "ap": ap}
    why = f"{_OTHER_PROMPTS} {len(names)} points prove nothing."
    for kind, quantities in (("zero", ("ap - ig", "ig", "ap")), ("mean", ("ig", "ap"))):
        of_kind = ablation.kinds[kind]
        assert of_kind.generated is not None
        changes = {
            "this run": np.array([each.change for each in of_kind.single]),
            "printed code": np.array([each.generated for each in of_kind.single], np.float64) - of_kind.generated,
        }
        changes["earlier metric"] = changes["printed code"]
        for quantity in quantities:
            cells: dict[str, Cell] = {}
            for column in COLUMNS:
                of = scores[column]
                against = of["ap"] - of["ig"] if quantity == "ap - ig" else of[quantity]
                cells[column] = _r(against, changes[column])
            name = f"r of {quantity.upper()} and the change of performance, {kind} ablation"
            key = f"r.{kind}.{'difference' if quantity == 'ap - ig' else quantity}"
            yield Row(name, published.FIGURES[key], cells, "earlier metric", why)


def _accuracy_row(figure: str, quoted: float | None, ours: float, theirs: float | None) -> Row:
    cells: dict[str, Cell] = {"this run": ours, "printed code": theirs, "earlier metric": None}
    return Row(figure, quoted, cells, "printed code", _OTHER_PROMPTS)


def _r(x: Float64[np.ndarray, " component"], y: Float64[np.ndarray, " component"]) -> Cell:
    """Pearson r, or why there is none."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return "undefined"
    return float(np.corrcoef(x, y)[0, 1])


def _second_pair(model: TransformerBridge, first: Result, second: Result, comparable: bool) -> Iterator[Row]:
    farthest = np.unravel_index(
        np.abs(first.comparisons["heads"].difference).argmax(), first.comparisons["heads"].difference.shape
    )
    head = published.CURVE_HEAD if comparable else component_name("heads", *map(int, farthest))
    _, layer, index = parse_component(head)
    tokens = second.tokens[0]
    missing = tokens.corrupted.shape[1] - tokens.clean.shape[1]
    padded = original_code.pad_pair(second.pairs[0], model.tokenizer.eos_token, missing)
    with contrast(model, padded, sites=("heads",)) as contrast_of_pair:
        clean, corrupted = float(contrast_of_pair.clean.logit_diff), float(contrast_of_pair.corrupted.logit_diff)
        n_tokens = contrast_of_pair.clean.tokens.shape[1]
    effect = float(activation_patching(model, padded, "heads").effect[layer, index])
    # The call's arguments are swapped: its path starts at the corrupted end, and the sign turns.
    swapped = original_code.first_node(model, padded, "heads", "corrupted", at=1 - original_code.FIRST_NODE)
    ig = -float(original_code.average(swapped, n_tokens, int(model.cfg.d_model)).effect[layer, index])
    ours = {name: second.maps["heads"][name] for name in ("ig", "ap")}
    patched = second.clean_logit_diff + float(ours["ap"].effect[layer, index])
    one_batch = "One batch of two lengths: the clean prompt was padded on the right and read at a pad position."
    for name, ours_f, theirs in (
        ("clean", second.clean_logit_diff, clean),
        ("corrupted", second.corrupted_logit_diff, corrupted),
    ):
        yield _second_pair_row(
            f"second pair: logit difference, {name}", f"second.{name}_logit_diff", ours_f, theirs, one_batch, 3
        )
    yield _second_pair_row(
        f"second pair: F along head {head}, alpha 0", "second.curve_start", second.clean_logit_diff, clean, one_batch, 4
    )
    yield _second_pair_row(
        f"second pair: F along head {head}, alpha 1", "second.curve_end", patched, clean + effect, one_batch, 4
    )
    yield _second_pair_row(
        f"second pair: IG of head {head}",
        "second.ig",
        float(ours["ig"].score[layer, index]),
        ig,
        f"{one_batch} {_FIRST_NODE} A mean over {n_tokens} x {int(model.cfg.d_model)} numbers, not a share of the gap; "
        "start and end of the path are swapped.",
        11,
    )
    yield _second_pair_row(
        f"second pair: AP of head {head}",
        "second.ap",
        float(ours["ap"].score[layer, index]),
        effect / first.gap,
        f"{one_batch} The effect was divided by the first pair's gap.",
        4,
    )


def _second_pair_row(figure: str, key: str, ours: float, theirs: float, why: str, digits: int) -> Row:
    """A figure of which the notebook has the printed code's version only."""
    cells: dict[str, Cell] = {"this run": ours, "printed code": theirs, "earlier metric": None}
    return Row(figure, published.FIGURES[key], cells, "printed code", why, digits)


def _deltas(
    results: Mapping[str, Result],
    replayed: Mapping[tuple[str, Site], Mapping[str, AttributionMap]],
    comparable: bool,
) -> Iterator[Row]:
    for (name, site), maps in replayed.items():
        ig = results[name].maps[site]["ig"]
        assert ig.delta is not None
        assert ig.layer_effect is not None
        for layer, (delta, effect) in enumerate(zip(ig.delta.tolist(), ig.layer_effect.tolist(), strict=True)):
            cells: dict[str, Cell] = {
                "this run": delta,
                **{column: float(each.effect[layer].sum()) - effect for column, each in maps.items()},
            }
            figure = published.DELTAS[name, site][layer] if comparable else None
            why = f"{_FIRST_NODE} Its sum is nearly 0, so that the delta is minus the layer's effect."
            yield Row(f"delta, {name} baseline, {site}, layer {layer}", figure, cells, "printed code", why, 3)
