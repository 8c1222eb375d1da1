"""The table at the end of a multirun has the columns of the sites that its jobs have."""

import pytest

from igap.sweep.terminal import _columns

HEADS = ["heads/pearson", "heads/jaccard@10", "heads/max_abs_delta"]
NEURONS = ["neurons/pearson", "neurons/jaccard@30"]


@pytest.mark.parametrize(
    ("sites", "columns"),
    [
        ([], [*HEADS, *NEURONS]),
        (["heads neurons", "heads neurons"], [*HEADS, *NEURONS]),
        (["heads"], HEADS),
        (["resid_pre", "v"], ["v/pearson", "v/jaccard@10", "resid_pre/max_abs_delta"]),
        (["neurons", "q heads"], [*HEADS, *NEURONS, "q/pearson", "q/jaccard@10"]),
    ],
)
def test_columns_are_those_of_the_sites_that_some_job_has(sites, columns):
    summaries = [{f"{site}/pearson": 0.5 for site in of_job.split()} for of_job in sites]
    assert _columns(summaries) == ["gap", *columns]
