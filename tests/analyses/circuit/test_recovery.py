"""The 26 heads, and how a ranking finds them: by hand, and on a random model of GPT-2 small's shape."""

import numpy as np
import pytest
import torch

from igap import pipeline
from igap.analyses.circuit.recovery import CLASS_OF, recover
from igap.attribution import AttributionMap
from igap.cli.compose import compose_one
from igap.components import IOI_CIRCUIT, component_names, parse_component
from igap.errors import InputError


def ranked_as(first, method="ap"):
    """A map of heads whose |effect| falls in this order, signs alternating; all others follow, layer by layer."""
    names = component_names("heads", 12, 12)
    order = [*first, *(name for name in names if name not in first)]
    effect = torch.zeros(12, 12, dtype=torch.float64)
    for rank, name in enumerate(order):
        _, layer, index = parse_component(name)
        effect[layer, index] = (144 - rank) * (-1) ** rank
    return AttributionMap(method, "heads", effect, gap=1.0)


def test_the_circuit_has_26_heads_each_of_one_class():
    assert sum(map(len, IOI_CIRCUIT.values())) == len(CLASS_OF) == 26
    assert all(parse_component(head)[1] < 12 and parse_component(head)[2] < 12 for head in CLASS_OF)


def test_a_ranking_that_puts_the_circuit_first_is_perfect_whatever_the_signs():
    (found,) = recover([ranked_as(list(CLASS_OF))]).of("all")
    assert (found.average_precision, found.roc_area) == (1.0, 1.0)
    assert (found.precision[26], found.recall[26], found.recall[13]) == (1.0, 1.0, 0.5)
    assert found.precision[30] == pytest.approx(26 / 30)


def test_a_class_is_found_as_worked_by_hand():
    """Previous token heads (2.2, 4.11) at ranks 2 and 4: precisions 1/2 and 2/4; of 2 x 142 pairs, 1 + 2 are lost."""
    circuit = recover([ranked_as(["0.0", "2.2", "9.9", "4.11"])])
    (found,) = circuit.of("previous token")
    assert found.average_precision == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert found.roc_area == pytest.approx(1 - 3 / (2 * 142))
    assert [found.recall[k] for k in (0, 1, 2, 3, 4)] == [0, 0, 0.5, 0.5, 1]
    assert found.precision[3] == pytest.approx(1 / 3)


def test_random_rankings_find_as_many_as_chance():
    rng = np.random.default_rng(0)
    names = component_names("heads", 12, 12)
    found = [recover([ranked_as(list(rng.permutation(names)))]).of("all")[0] for _ in range(100)]
    # Standard error of the mean area of 100 rankings, from the variance of Mann and Whitney's U: 0.006.
    assert np.mean([one.roc_area for one in found]) == pytest.approx(0.5, abs=0.02)
    assert np.mean([one.recall[72] for one in found]) == pytest.approx(0.5, abs=0.03)


def test_summary_and_table_name_method_and_class():
    circuit = recover([ranked_as(list(CLASS_OF), "ig"), ranked_as(["2.2"], "ap")])
    summary = circuit.summary()
    assert summary["circuit/ig/average_precision"] == 1.0
    assert summary["circuit/ap/previous token/precision@10"] == pytest.approx(0.1)
    table = circuit.tables()["circuit"].set_index(["method", "class"])
    assert table.loc[("ap", "previous token"), "recall@10"] == 0.5
    assert table.loc[("ig", "name mover"), "n_heads"] == 3
    assert circuit.sentences()[0] == (
        "IOI circuit, IG: 26 of its 26 heads among the first 26 by |effect|, average precision 1.000, ROC area 1.000 "
        "(chance 0.181, 0.5)"
    )


def test_the_circuit_of_a_model_of_another_shape_is_refused_before_it_loads():
    config = compose_one(["model.circuit=ioi"]).config
    message = (
        r"^model\.circuit: got ioi, whose 26 heads are those of GPT-2 small \(12 layers, 12 heads\), with a model of 4 "
        r"layers and 8 heads\. Set model\.circuit=null\.$"
    )
    with pytest.raises(InputError, match=message):
        pipeline.check(config)
    with pytest.raises(InputError, match=message):
        recover([AttributionMap("ap", "heads", torch.ones(4, 8), gap=1.0)])
