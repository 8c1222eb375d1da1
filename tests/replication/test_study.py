"""Rows of the study: which column a published figure belongs to, and when it counts as met."""

import pytest

from igap.replication import published
from igap.replication.study import COLUMNS, Row, Study


def row(published, here, digits=4, source="earlier metric"):
    return Row("r", published, {**dict.fromkeys(COLUMNS, 0.5), source: here}, source, "", digits)


@pytest.mark.parametrize(
    ("figure", "here", "digits", "agrees"),
    [
        (0.9548, 0.9546, 4, True),
        (0.9548, 0.97, 4, False),
        (0.9548, -0.9548, 4, False),
        (-0.1078, -0.1085, 4, True),  # within 1%
        (0.0089, 0.0091, 4, False),  # 2% and two units of the last digit
        (0.009, 0.0099, 3, True),  # one unit of the last digit
        (3.3620e-08, 3.38e-08, 11, True),
        (3.3620e-08, 3.362e-03, 11, False),
        ("7.3 8.10", "7.3 8.10", 4, True),
        ("7.3 8.10", "7.3", 4, False),
        (None, 0.3, 4, None),
        (0.3, None, 4, None),
    ],
)
def test_a_published_figure_is_met_within_one_percent_or_one_unit_of_its_last_digit(figure, here, digits, agrees):
    assert row(figure, here, digits).agrees is agrees


def test_what_is_compared_is_the_column_that_was_published():
    assert row(0.9, 0.9, source="printed code").agrees is True
    assert Row("r", 0.9, {**dict.fromkeys(COLUMNS, 0.9), "printed code": 0.1}, "printed code", "").agrees is False


def test_the_summary_counts_and_names_figures_that_differ():
    rows = (row(0.9, 0.9), row(0.9, 0.1), row(None, 0.1))
    summary = Study(rows, comparable=True).summary()
    assert summary == {"notebook/n_compared": 2, "notebook/n_agree": 1, "notebook/differ": "r"}
    assert Study(rows, comparable=True).sentences() == ("notebook: 1 of 2 published figures agree; not: r",)
    table = Study((row(None, 0.1),), comparable=False).tables()["published"]
    assert table["published"].tolist() == ["GPT-2 small only"]


def test_the_published_deltas_are_of_twelve_layers_each():
    assert {len(deltas) for deltas in published.DELTAS.values()} == {12}
    assert len(published.OUTLIERS) == len(published.OUTLIER_AP) == len(published.ZERO_ABLATED) == 6
