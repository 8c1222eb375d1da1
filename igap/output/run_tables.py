"""The tables of a run: components of a site, pairs, positions of prompts that differ in length."""

from typing import Any

import numpy as np
import pandas as pd

from igap.analyses.circuit.recovery import CLASS_OF
from igap.components import PLACES, Site, component_names
from igap.config import TEXTS
from igap.pipeline import Result
from igap.statistics.across_pairs import PairStatistics

TOP_NEURONS = 100
"""Rows that each method puts into neurons.csv."""

MOST_OUTLIERS = 5_000
"""Rows that outliers beyond those put into it: W&B shows no table of more than 10,000."""


def table(result: Result, site: Site) -> pd.DataFrame:
    """One row a component: its scores by each method, AP - IG, effects in F's unit, and whether it is an outlier.

    By positions or spans, one row a component and span. Of several pairs these are means, and the ends of the intervals
    of IG's and AP's mean scores come last.
    """
    maps, comparison = result.maps[site], result.comparisons[site]
    n_layers, *_, width = comparison.difference.shape
    layer, *span, index = np.indices(comparison.difference.shape)
    columns: dict[str, Any] = {"layer": layer}
    if span:
        columns["span"] = np.array(maps["ig"].spans, object)[span[0]]
    columns |= {} if PLACES[site].column is None else {str(PLACES[site].column): index}
    columns |= {method: maps[method].score.double().numpy() for method in maps}
    columns["difference"] = columns["ap"] - columns["ig"]
    columns |= {f"effect_{method}": maps[method].effect.double().numpy() for method in maps}
    columns |= {"outlier_abs": comparison.outlier_abs, "outlier_limits": comparison.outlier_limits}
    if result.spread is not None:
        for method in ("ig", "ap"):
            ends = result.spread.intervals[site][method]
            columns |= {f"{method}_low": ends.low, f"{method}_high": ends.high}
    frame = pd.DataFrame({name: column.ravel() for name, column in columns.items()})
    names = np.array(component_names(site, n_layers, width), object)
    frame.insert(0, "name", names[(layer * width + index).ravel()])
    if site == "heads" and result.config.model.circuit == "ioi":
        frame["class"] = frame["name"].map(CLASS_OF)
    return frame


def together_table(result: Result, site: Site) -> pd.DataFrame:
    """One row a component: effects of all positions at once, and what AP's parts lack of that; of maps with spans."""
    maps = {method: each for method, each in result.maps[site].items() if each.together is not None}
    if not maps:
        return pd.DataFrame()
    n_layers, *_, width = result.comparisons[site].difference.shape
    columns = {
        f"effect_{method}": each.together.double().numpy().ravel()
        for method, each in maps.items()
        if each.together is not None
    }
    interaction = result.maps[site]["ap"].position_interaction
    if interaction is not None:
        columns["ap_interaction"] = interaction.double().numpy().ravel()
    return pd.DataFrame({"name": component_names(site, n_layers, width), **columns})


def pair_table(result: Result, spread: PairStatistics) -> pd.DataFrame:
    """One row a pair, in the order of axis `pair` of the tensors: texts, tokens, F, gap, and Pearson r of IG and AP.

    The other columns of the file that the pairs come from are last; one whose name is taken is called `file_NAME`.
    """
    columns: dict[str, object] = {"index": range(len(result.pairs))}
    columns |= {name: [pair.cells[i] for pair in result.pairs] for i, name in enumerate(TEXTS)}
    columns |= {
        "n_tokens": [tokens.n_prompt for tokens in result.tokens],
        "n_tokens_corrupted": [tokens.n_prompt_corrupted for tokens in result.tokens],
        "first_difference": [tokens.first_difference for tokens in result.tokens],
        "clean_logit_diff": result.clean_logit_diffs,
        "corrupted_logit_diff": result.corrupted_logit_diffs,
    }
    if any(tokens.forced for tokens in result.tokens):
        columns["n_answer_tokens"] = [tokens.n_read for tokens in result.tokens]
    if not result.config.metric.is_default:
        columns |= {"clean_value": result.clean_values, "corrupted_value": result.corrupted_values}
    columns["gap"] = result.gaps
    columns |= {f"pearson_{site}": of_pairs for site, of_pairs in spread.pearson.items()}
    for name in dict.fromkeys(name for pair in result.pairs for name in pair.further):
        column = name if name not in columns else f"file_{name}"
        columns[column] = [pair.further.get(name, "") for pair in result.pairs]
    return pd.DataFrame(columns)


def alignment_table(result: Result) -> pd.DataFrame:
    """One row a position of the clean and of the corrupted prompt, of every pair that is not matched one to one.

    Positions without a partner stand alone: they keep their value.
    """
    columns = ["pair", "clean_position", "clean_token", "corrupted_position", "corrupted_token"]
    rows = [
        (index, i, "" if i is None else tokens.clean_words[i], j, "" if j is None else tokens.corrupted_words[j])
        for index, tokens in enumerate(result.tokens)
        if not tokens.alignment.is_plain
        for i, j in tokens.alignment.rows
    ]
    return pd.DataFrame(rows, columns=columns).astype({"clean_position": "Int64", "corrupted_position": "Int64"})


def top_neurons(result: Result) -> pd.DataFrame:
    """The rows of the neurons that either method ranks among its first TOP_NEURONS by |effect|, in AP's order.

    After them the other outliers (`outlier_abs`), the MOST_OUTLIERS with the largest |AP - IG|, farthest first.
    """
    frame = table(result, "neurons")
    ranks = frame[["effect_ig", "effect_ap"]].abs().rank(ascending=False, method="first")
    is_top = (ranks <= TOP_NEURONS).any(axis=1)
    order = frame.loc[is_top, "effect_ap"].abs().sort_values(ascending=False, kind="stable").index
    distance = pd.Series(np.abs(result.comparisons["neurons"].difference.ravel()))[frame["outlier_abs"] & ~is_top]
    others = distance.sort_values(ascending=False, kind="stable").index[:MOST_OUTLIERS]
    return frame.loc[[*order, *others]]
