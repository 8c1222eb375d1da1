"""The pictures of a search: what is drawn from small tables."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from igap.analyses.curves import OutputCurves
from igap.counterfactual.output import plots
from igap.counterfactual.validation.results import RandomControl
from igap.errors.missing import Missing

TRIALS = pd.DataFrame(
    {
        "trial": [0, 1, 2, 3, 4],
        "source": ["start", "start", "incumbent", "incumbent", "random"],
        "ap": [0.5, 0.2, 0.9, 2.0, np.nan],
        "fluency": [-1.0, -0.1, -2.0, -3.0, np.nan],
        "counts": [True, True, True, False, False],
    }
)

COMPARED = {
    "random": RandomControl(
        n=2,
        n_feasible=2,
        best=0.5,
        best_sign="raise",
        mean=0.35,
        search_at_equal_budget=Missing("no random trials"),
        search_sign="abs",
    ),
    "reference": 0.25,
    "neutral": Missing("no template"),
}
"""What the history compares the trials with."""


def texts(fig):
    return "\n".join(text.get_text() for text in fig.findobj(Text))


def drawn(ax):
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines}


def panels(fig):
    return [ax for ax in fig.axes if ax.get_label() != "<colorbar>"]


def inside(fig):
    """Whether nothing runs out of the figure."""
    fig.draw_without_rendering()
    width, height = fig.get_size_inches() * fig.dpi
    boxes = [a.get_tightbbox() for a in (*(ax for ax in fig.axes if ax.get_visible()), *fig.legends, *fig.texts)]
    return all(-1 < b.x0 < b.x1 < width + 1 and -1 < b.y0 < b.y1 < height + 1 for b in boxes)


def test_history_shows_who_proposed_what_the_best_so_far_and_what_to_compare_it_with():
    fig = plots.search_history(TRIALS, "9.6", "ap", **COMPARED)
    (ax,) = fig.axes
    lines = drawn(ax)
    assert lines["start (2)"] == ([0, 1], [0.5, 0.2])
    assert lines["incumbent (2)"] == ([2], [0.9]), "out of bounds is drawn as such"
    assert lines["out of bounds (1)"] == ([3], [2.0])
    x, y = lines["best so far"]
    assert x == [0, 1, 2, 3]
    np.testing.assert_array_equal(y, [0.5, 0.5, 0.9, np.nan])
    assert lines["best of 2 at random: 0.500"][1] == [0.5, 0.5]
    assert lines["made by hand: 0.250"][1] == [0.25, 0.25]
    assert not any(label.startswith("neutral") for label in lines)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("trial", "ap, logits")
    assert "9.6" in fig.get_suptitle()
    assert inside(fig)


def test_a_history_without_a_value_says_so():
    fig = plots.search_history(TRIALS[TRIALS["ap"].isna()], "9.6", "ap", **COMPARED)
    assert "no trial has a value" in texts(fig)


def test_single_edits_are_sorted_in_each_slot_beside_the_best_and_their_ends_are_named():
    edits = pd.DataFrame(
        {
            "slot": ["verb"] * 20 + ["first"] * 3,
            "option": [f"w{i}" for i in range(20)] + ["=keep", "Tom", "A very long phrase of many words"],
            "value": [*np.linspace(0, 1, 20), 0.2, 1.5, 0.7],
        }
    )
    fig = plots.search_single_edits(edits, 1.2, "9.6")
    verb, first = panels(fig)
    assert (verb.get_title(), first.get_title()) == ("verb", "first")
    assert list(verb.lines[0].get_ydata()) == sorted(np.linspace(0, 1, 20), reverse=True)
    assert list(verb.lines[1].get_ydata()) == [1.2, 1.2]
    assert first.texts[0].get_text() == "+1.500 Tom\n+0.700 A very long phrase\n+0.200 keep"
    named = verb.texts[0].get_text().split("\n")
    assert [line.split()[1] for line in named] == [
        *(f"w{i}" for i in range(19, 13, -1)),
        *(f"w{i}" for i in range(5, -1, -1)),
    ]
    assert verb.get_ylim() == first.get_ylim()
    assert verb.get_ylim()[1] > 1.5
    assert inside(fig)


def test_a_search_of_many_slots_shows_the_twelve_whose_words_reach_farthest():
    slots = [f"token{i}" for i in range(14)]
    edits = pd.DataFrame({"slot": slots, "option": ["a"] * 14, "value": [1.0 - 0.01 * i for i in range(14)]})
    fig = plots.search_single_edits(edits, 1.0, "9.6")
    assert [ax.get_title() for ax in panels(fig) if ax.get_visible()] == slots[2:]


HEADS = pd.DataFrame(
    {
        "name": ["0.0", "0.1", "1.0", "1.1"],
        "by_hand/effect": [1.0, 0.0, -2.0, 0.5],
        "best/effect": [0.0, 3.0, 1.0, -1.0],
    }
)


def test_heads_by_hand_and_best_stand_side_by_side_on_one_scale():
    fig = plots.search_heads(HEADS, "1.1")
    left, right = panels(fig)
    assert (left.get_title(), right.get_title()) == ("made by hand", "best found")
    np.testing.assert_array_equal(left.images[0].get_array(), [[1.0, 0.0], [-2.0, 0.5]])
    np.testing.assert_array_equal(right.images[0].get_array(), [[0.0, 3.0], [1.0, -1.0]])
    assert left.images[0].get_clim() == right.images[0].get_clim() == (-3, 3)
    assert "AP effect, logits" in texts(fig)
    assert "searched: 1.1 (framed)" in fig.get_suptitle()
    for ax in (left, right):
        assert [patch.get_bbox().bounds for patch in ax.patches] == [(0.5, 0.5, 1, 1)], "the searched head is framed"
    neuron = plots.search_heads(HEADS, "L1.N7")
    assert not any(ax.patches for ax in panels(neuron))
    assert neuron.get_suptitle().endswith("searched: L1.N7")


def test_curves_of_both_pairs_have_their_chords():
    alphas = np.array([0.0, 0.5, 1.0])

    def curves(values, ends):
        by_pair, slopes = np.array([[values]]), np.zeros(1)
        return OutputCurves(("9.6",), alphas, by_pair, np.array([ends]), slopes, 0.0, "corrupted", "noising")

    reference, best = curves([3.0, 3.1, 3.0], (3.0, 3.0)), curves([3.0, 5.0, 4.5], (3.0, 4.5))
    (ax,) = plots.search_curves(reference, best, "9.6").axes
    lines = drawn(ax)
    assert lines["best found: F(1) - F(0) +1.500 logits"] == ([0.0, 0.5, 1.0], [3.0, 5.0, 4.5])
    assert lines["made by hand: F(1) - F(0) +0.000 logits"][1] == [3.0, 3.1, 3.0]
    chords = [list(line.get_ydata()) for line in ax.lines if line.get_linestyle() == ":"]
    assert chords == [[3.0, 3.0], [3.0, 4.5]]
    assert ax.get_ylabel() == "F, logits"


def test_the_front_is_a_line_through_the_trials_that_none_beats_among_all():
    front = TRIALS.iloc[[0, 2, 1]][["ap", "fluency"]]
    fig = plots.search_front(TRIALS, front, ("ap", "fluency"), "9.6")
    (ax,) = fig.axes
    lines = drawn(ax)
    assert lines["front"] == ([-2.0, -1.0, -0.1], [0.9, 0.5, 0.2])
    assert lines["start (2)"] == ([-1.0, -0.1], [0.5, 0.2])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("fluency, nats a token beside the clean prompt", "ap, logits")
    assert "3 trials that none beats" in fig.get_suptitle()


def test_trials_out_of_bounds_are_no_rivals_of_the_front():
    fig = plots.search_front(TRIALS, TRIALS.iloc[[2]][["ap", "fluency"]], ("ap", "fluency"), "9.6")
    lines = drawn(fig.axes[0])
    assert lines["incumbent (2)"] == ([-2.0], [0.9])
    assert lines["out of bounds (1)"] == ([-3.0], [2.0])


@pytest.mark.parametrize("n", [1, 3, 40])
def test_the_matrix_names_heads_and_whose_prompts_and_is_symmetric_about_0(n):
    names = [f"{i // 8}.{i % 8}" for i in range(n)]
    values = np.arange(n * n, dtype=float).reshape(n, n) - 3
    fig = plots.search_matrix(pd.DataFrame(values, index=names, columns=names))
    (ax,) = panels(fig)
    np.testing.assert_array_equal(ax.images[0].get_array(), values)
    limit = abs(values).max()
    assert ax.images[0].get_clim() == (-limit, limit)
    shown = [label.get_text() for label in ax.get_yticklabels()]
    assert shown == names[:: -(-n // 30)] == [label.get_text() for label in ax.get_xticklabels()]
    assert inside(fig)


def test_a_matrix_of_neurons_alone_says_that_no_head_was_searched():
    assert "no head was searched" in texts(plots.search_matrix(pd.DataFrame(columns=["L0.N1"])))


def test_a_scan_shows_heads_that_were_searched_and_leaves_the_others_grey():
    scan = pd.DataFrame({"name": ["0.1", "L0.N1"], "by_hand/ap": [0.5, 9.0], "best/ap": [-2.0, 9.0]})
    left, right = panels(plots.search_scan(scan, ["0.0", "0.1", "1.0", "1.1"]))
    for ax, value in ((left, 0.5), (right, -2.0)):
        cells = np.ma.filled(ax.images[0].get_array(), np.nan)
        np.testing.assert_array_equal(cells, [[np.nan, value], [np.nan, np.nan]])
    assert right.images[0].get_clim() == (-2, 2)


def test_the_share_of_ordinary_prompts_falls_from_one_at_the_least_error_to_one_prompt_at_the_largest():
    fig = plots.search_ordinary((0.25, 0.5, 1.0, 1.0), 2.0, "1.2", "atp", reference=0.75)
    (ax,) = panels(fig)
    lines = drawn(ax)
    assert lines["4 ordinary prompts"] == ([0, 0.25, 0.5, 1.0, 1.0], [1, 1.0, 0.75, 0.5, 0.25])
    assert lines["best found: 2.000"][0] == [2.0, 2.0]
    assert lines["half of it"][0] == [1.0, 1.0]
    assert lines["made by hand: 0.750"][0] == [0.75, 0.75]
    assert ax.get_xlabel() == "error |atp - AP| of the component where it is largest, logits"
    assert inside(fig)
    assert "no prompt was drawn at random" in texts(plots.search_ordinary((), 2.0, "1.2", "atp", reference=0.75))
