"""Self-repair: a backup that was planted, identities, every site by both routes, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from helpers import handmade
from helpers.handmade import PAIR

from igap import InputError, PromptPair, activation_patching, self_repair
from igap.components import PLACES
from igap.engine.open_pairs import contrast

ROUND = 1e-9
"""Norms with a huge epsilon are linear up to a few parts in 10^12; F is of size 3."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return handmade.backup(tmp_path_factory.mktemp("backup"))


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_a_planted_backup_ranks_first_where_ap_alone_ranks_it_last(model, direction):
    found = self_repair(model, PAIR, "0.0", direction=direction)
    table = found.to_frame()
    assert found.alone.gap == pytest.approx(2.75, abs=ROUND)
    if direction == "noising":
        assert found.effect == pytest.approx(-1, abs=ROUND), "2 of its own are lost, 1 comes back through the backup"
        assert (table["rank"]["1.0"], table["rank_ap"]["1.0"]) == (1, 3)
        assert list(table.index) == found.ranking()
        table = table.loc[["1.0", "0.1", "1.1"]]  # the last two change by rounding alone, in either order
        assert table["effect_alone"].tolist() == pytest.approx([0, -0.5, -0.25], abs=ROUND)
        assert table["effect_given"].tolist() == pytest.approx([-1, -0.5, -0.25], abs=ROUND)
        assert table["effect_change"].tolist() == pytest.approx([-1, 0, 0], abs=ROUND)
        assert table["change"].tolist() == pytest.approx([-1 / 2.75, 0, 0], abs=ROUND)
        assert found.repairs[2] == pytest.approx(1 / 2.75, abs=ROUND)
        assert np.isnan(found.repairs[0])
    else:  # in the corrupted run there is no name for the backup to read
        assert found.effect == pytest.approx(2, abs=ROUND)
        assert table["effect_change"].abs().max() < ROUND


def test_where_nothing_interacts_nobody_is_said_to_repair(tmp_path):
    """Heads of one layer of a model that is linear: what is left of a change is rounding."""
    found = self_repair(handmade.linear(tmp_path), PAIR, "0.1")
    assert np.nanmax(np.abs(found.change()[:4])) < ROUND
    assert " 0." not in " ".join(found.sentences()[1:])
    assert " 1.0 " in found.sentences()[2], "a head that reads what 0.1 wrote"


def test_neurons_that_the_backup_reads_repair_too(model):
    found = self_repair(model, PAIR, "0.0", "neurons")
    assert found.names == ["L0.N0", "L1.N0"]
    assert self_repair(model, PAIR, "00.00").ranking() == self_repair(model, PAIR, "0.0").ranking()
    assert found.change().tolist() == pytest.approx([-1, 0], abs=ROUND)
    assert found.effect == pytest.approx(-1, abs=ROUND)
    beside = self_repair(model, PAIR, "L0.N0")
    assert beside.effect == pytest.approx(0, abs=ROUND), "it is off in both runs"
    assert beside.change() == pytest.approx([1 - 2, 0, 0, 0], abs=ROUND), "0.0 alone loses 1 and with its backup cut 2"


def test_a_repair_is_above_0_whatever_the_sign_of_the_gap_and_without_scores(model):
    swapped = PromptPair(*PAIR.texts[:2], PAIR.distractor, PAIR.answer, min_gap=0.0)
    unscored = PromptPair(*PAIR.texts, min_gap=1e3)
    for pair, size in ((swapped, 1 / 2.75), (unscored, 1.0), (PromptPair(*swapped.texts, min_gap=1e3), 1.0)):
        found = self_repair(model, pair, "0.0")
        assert found.repairs[2] == pytest.approx(size, abs=ROUND)
        assert found.ranking()[0] == "1.0"
    assert found.summary()["self_repair/first/repairs"] == pytest.approx(1, abs=ROUND)
    assert "they carry more then: 1.0 +0.000 -> +1.000" in found.sentences()[1].replace("-0.000", "+0.000")
    assert found.sentences()[0].endswith("before -> after, logits")


def test_the_change_is_the_same_whichever_of_the_two_is_patched_first(small, pair):
    """Both are F(both) - F(one) - F(other) + F: also where the one that stays patched comes later."""
    for name in ("gpt2", "gpt_neox"):
        model = small(name)
        for direction in ("noising", "denoising"):
            asked = {"direction": direction}
            late, early = (self_repair(model, pair, each, **asked) for each in ("2.1", "0.3"))
            one, other = (dict(zip(each.names, each.change(), strict=True)) for each in (late, early))
            assert one["0.3"] == pytest.approx(other["2.1"], abs=1e-12)
            assert abs(one["0.3"]) > 1e-5
            neuron = self_repair(model, pair, "L1.N7", **asked)
            neurons = self_repair(model, pair, "2.1", "neurons", **asked)
            there = dict(zip(neuron.names, neuron.change(), strict=True))["2.1"]
            assert there == pytest.approx(dict(zip(neurons.names, neurons.change(), strict=True))["L1.N7"], abs=1e-12)
            assert late.effect == pytest.approx(
                activation_patching(model, pair, **asked).effect[2, 1].item(), abs=1e-12
            )


@pytest.mark.parametrize(
    ("architecture", "site"), [*(("gpt2", site) for site in PLACES), ("gpt_neox", "heads"), ("gpt_neox", "attn_out")]
)
def test_every_site_has_the_same_numbers_by_both_routes(small, pair, site, architecture):
    model = small(architecture)
    for patched in ("1.2", "L1.N3"):
        fast, slow = (self_repair(model, pair, patched, site, metric="prob", route=r) for r in (None, "hooks"))
        np.testing.assert_allclose(fast.given.effect, slow.given.effect, atol=1e-12)
        np.testing.assert_allclose(fast.change(), slow.change(), atol=1e-12)
        assert fast.effect == pytest.approx(slow.effect, abs=1e-12)
    if site == "heads":
        with contrast(model, pair) as question:
            assert question.backend.route == "suffix"


def test_of_several_pairs_all_is_a_mean(small):
    rest = "went to the store, {} gave a bottle of milk to"
    pairs = [
        PromptPair(f"After John and Mary {rest.format('Mary')}", f"After John and Mary {rest.format('John')}",
                   " John", " Mary", min_gap=0.0),
        PromptPair("John and Mary went to the store, Mary gave it to",
                   "John and Mary went to the store, John gave it to", " John", " Mary", min_gap=0.0),
    ]  # fmt: skip
    model = small()
    each = [self_repair(model, pair, "0.1") for pair in pairs]
    whole = self_repair(model, pairs, "0.1")
    for kind in ("effect", "score"):
        np.testing.assert_allclose(whole.change(kind), sum(one.change(kind) for one in each) / 2, atol=1e-12)
    assert whole.effect == pytest.approx(sum(one.effect for one in each) / 2, abs=1e-12)


def test_summary_sentences_table_and_repr(model):
    found = self_repair(model, PAIR, "0.0")
    assert found.summary() == {
        "self_repair/patched": "0.0",
        "self_repair/effect": pytest.approx(-1, abs=ROUND),
        "self_repair/first": "1.0",
        "self_repair/first/repairs": pytest.approx(1 / 2.75, abs=ROUND),
        "self_repair/last": found.ranking()[-1],
        "self_repair/last/repairs": pytest.approx(0, abs=ROUND),
    }
    assert found.sentences()[0] == (
        "self-repair, 0.0 patched: F changes by -1.000 logits; AP of heads before -> after, scores"
    )
    assert found.sentences()[1].startswith("they carry more then: 1.0 ")
    assert repr(found) == f"SelfRepair({'; '.join(found.sentences())})"
    assert "1.0: -0.3636" in found._repr_html_()
    pd.testing.assert_frame_equal(found.tables()["self_repair"], found.to_frame().reset_index())


@pytest.mark.parametrize(
    ("patched", "message"),
    [
        ("9.6", r"patched: got 9\.6, but the model has 2 layers"),
        ("0.7", r"patched: got 0\.7, but the model has 2 heads in a layer"),
        ("head six", r"patched: got 'head six', wanted a head such as 9\.6 or a neuron"),
    ],
)
def test_a_component_that_there_is_not_is_refused(model, patched, message):
    with pytest.raises(InputError, match=message):
        self_repair(model, PAIR, patched)
