"""The chain and its interactions of any site, at any positions, for any metric, against slow references."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from helpers import handmade
from helpers.by_hand import ByHand
from helpers.checkpoints import save_beside
from hypothesis import given, settings
from hypothesis import strategies as st

from igap import InputError, PromptPair, activation_patching, attribution_patching, integrated_gradients, pipeline
from igap.analyses.explain.interactions import interactions
from igap.attribution.decomposition import BETWEEN, POINTS, TERMS, decompose
from igap.cli.compose import compose_one
from igap.components import PLACES
from igap.engine.open_pairs import open_pairs
from igap.inputs.prompts import tokenize
from igap.models import cached
from igap.output import disk

PAIR = PromptPair("After John and Mary gave Mary a", "After Tom and Mary gave John a", " milk", " dog", min_gap=0.0)
SPANS = ("all", "each", "last", "diff", {"names": [1, 3], "gave": "gave", "last": [6]}, {"first": [1]})


def entropy(logits, pair):
    """A metric of one's own."""
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


@settings(max_examples=10)
@given(
    site=st.sampled_from(list(PLACES)),
    positions=st.sampled_from(SPANS),
    metric=st.sampled_from(["logit_diff", "logprob", "prob_diff", entropy]),
    baseline=st.sampled_from(["corrupted", "zero"]),
    direction=st.sampled_from(["noising", "denoising"]),
    path=st.sampled_from(["joint", "single"]),
    answer=st.sampled_from([" milk", " cat dog"]),
)
def test_the_terms_are_the_way_from_one_method_to_the_other(
    small, site, positions, metric, baseline, direction, path, answer
):
    model = small("gpt2")
    if direction == "denoising":
        baseline = "corrupted"
    if path == "single" and positions != "all" and not PLACES[site].is_vector:
        path = "joint"
    pair = replace(PAIR, answer=answer if metric == "logprob" else " milk")
    toward = {"direction": direction, "positions": positions, "metric": metric}
    ig = integrated_gradients(model, pair, site, baseline=baseline, path=path, n_steps=3, **toward)
    ap = activation_patching(model, pair, site, **toward)
    with open_pairs(model, pair, sites=(site,), metric=metric) as opened:
        chain = decompose(opened, ig, ap, baseline=baseline, direction=direction, path=path, positions=positions)
    shape = ap.effect.shape
    assert all(chain.points[point].effect.shape == shape for point in POINTS)
    assert all(chain.points[point].spans == ap.spans for point in POINTS)
    terms = chain.terms()
    exact = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(sum(terms[term] for term in BETWEEN), ap.effect - ig.effect, **exact)
    other = "denoising" if direction == "noising" else "noising"
    mirrored = activation_patching(model, pair, site, **{**toward, "direction": other})
    torch.testing.assert_close(chain.points["ap_mirrored"].effect, -mirrored.effect, **exact)
    naive = attribution_patching(model, pair, site, baseline=baseline, **toward)
    torch.testing.assert_close(chain.points["atp"].effect, naive.effect, **exact)
    torch.testing.assert_close(sum(terms[term] for term in TERMS), -mirrored.effect - naive.effect, **exact)
    if path == "joint" or PLACES[site].is_vector:
        fine = integrated_gradients(model, pair, site, n_steps=32, **toward)
        bound = 3e-4 * abs(ap.gap) + 1e-6
        torch.testing.assert_close(chain.points["ig_corrupted"].effect, fine.effect, rtol=0, atol=bound)


def test_positions_of_the_other_prompt_are_the_partners(small):
    """Where lengths differ, and where only one of the prompts has the words."""
    model = small("gpt2")
    pair = PromptPair("After John and Mary gave Tom a", "After Anna gave Tom a", " milk", " dog", 0.0, align="diff")
    spans = {"names": "After John", "verb": "gave", "second": "Tom"}
    ig, ap = (make(model, pair, positions=spans) for make in (integrated_gradients, activation_patching))
    with open_pairs(model, pair, sites=("heads",)) as opened:
        chain = decompose(opened, ig, ap, positions=spans)
    mirrored = chain.points["ap_mirrored"]
    first = tokenize(model, pair).clean_words.index("John")
    assert (ap.where[0], mirrored.where) == ((first - 1, first), ((first - 1,), (first + 1,), (first + 2,)))
    there = {"verb": "gave", "second": "Tom"}  # John has no partner, and After is the same in both
    expected = activation_patching(model, pair, positions=there, direction="denoising")
    torch.testing.assert_close(mirrored.effect[:, 1:], -expected.effect, rtol=0, atol=1e-12)
    assert not mirrored.effect[:, 0].any()
    longer, start = replace(pair, clean=pair.corrupted, corrupted=pair.clean), {"start": [0]}
    ig, ap = (make(model, longer, positions=start) for make in (integrated_gradients, activation_patching))
    with open_pairs(model, longer, sites=("heads",)) as opened:  # two positions of the corrupted prompt have no partner
        assert decompose(opened, ig, ap, positions=start).points["ap_mirrored"].where == ((0,),)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A small GPT-2 of igap, and the same weights on plain modules."""
    return save_beside(tmp_path_factory.mktemp("gpt2"), "gpt2", n_inner=12)


@pytest.mark.parametrize("positions", ["each", "last", {"early": [1, 3], "late": [6]}])
@pytest.mark.parametrize("site", ["heads", "neurons", "k", "resid_pre"])
def test_interactions_by_position_are_four_forwards_each(case, site, positions):
    model, plain = case
    tokens = tokenize(model, PAIR)
    hand = ByHand(plain, tokens.answer, tokens.distractor)
    n = tokens.clean.shape[1]
    asked = {"each": [[i] for i in range(n)], "last": [[n - 1]]}[positions] if isinstance(positions, str) else None
    asked = asked or list(positions.values())
    rest = [i for i in range(n) if not any(i in span for span in asked)]
    start, end = (hand.read(each)[site, 1] for each in (tokens.clean, tokens.corrupted))
    width, spans = start.shape[2], [*asked, rest]
    which = len(asked) - 1

    def f(*moved):
        row = start.clone()
        for span, component in moved:
            row[0, spans[span], component] = end[0, spans[span], component]
        return hand.given(tokens.clean, site, 1, row)[0]

    target = which, width - 1
    others = [(s, c) for s in range(len(spans)) for c in range(width) if (s, c) != target]
    with torch.no_grad():
        expected = torch.stack([f(target, each) - f(target) - f(each) + f() for each in others])
    with open_pairs(model, PAIR, sites=(site,)) as opened:
        found = interactions(
            opened, (site, 1, width - 1), span=which, spans=[f" at {i}" for i in range(len(asked))], positions=positions
        )
    shown = len(found.others)
    assert shown in (len(others), len(others) - width)
    torch.testing.assert_close(found.effect, expected[:shown], rtol=0, atol=1e-10)
    assert not expected[shown:].any()
    assert expected.abs().max() > 1e-6
    if rest:
        assert found.others[-1].endswith(" elsewhere")


def test_of_a_square_the_interaction_by_position_is_that_of_pairs(tmp_path):
    """F = (1 + z_0 + z_1)^2, z at the last position: AP - IG is 6 there, and nothing is of higher order."""
    model = handmade.two_heads(tmp_path)
    ig, ap = (make(model, handmade.PAIR, positions="each") for make in (integrated_gradients, activation_patching))
    with open_pairs(model, handmade.PAIR, sites=("heads",)) as opened:
        chain = decompose(opened, ig, ap, positions="each")
        split = interactions(opened, ("heads", 0, 1), span=5, spans=[f" at {i}" for i in range(6)], positions="each")
    assert chain.terms()["interaction"][0, 5].tolist() == pytest.approx([6, 6], abs=1e-4)
    assert not chain.terms()["interaction"][0, :5].any()
    shares = dict(zip(split.others, split.shares.tolist(), strict=True))
    assert shares.pop("0.0 at 5") == pytest.approx(6)
    assert not any(shares.values())


FEW = ("ig.n_steps=9", "plots=none", "tracking=disabled", "device=cpu", "prompts.min_gap=0")


@pytest.fixture
def run(checkpoint, monkeypatch):
    """A run of the random GPT-2."""
    monkeypatch.setattr(cached, "_cached_model", cached._cached_model.__wrapped__)

    def compute(*overrides):
        return pipeline.run(compose_one(["model=hf", f"model.name={checkpoint('gpt2')}", *FEW, *overrides]).config)

    return compute


def test_a_run_explains_every_site_by_position(run, tmp_path):
    result = run("sites=[heads,resid_pre]", "positions=each", "explain=all", "metric=prob")
    assert not result.failures
    found = result.findings["explain"]
    disk.prepare(tmp_path)
    disk.write(result, tmp_path)
    for site, name in (("heads", "explanation.csv"), ("resid_pre", "resid_pre_explanation.csv")):
        frame, table = pd.read_csv(tmp_path / name), pd.read_csv(tmp_path / f"{site}.csv")
        assert frame[["name", "layer", "span"]].equals(table[["name", "layer", "span"]])
        between = frame[[f"effect_{term}" for term in BETWEEN]].sum(axis=1)
        assert between.to_numpy() == pytest.approx((table["effect_ap"] - table["effect_ig"]).to_numpy(), abs=1e-9)
        assert (frame["outlier_abs"] == table["outlier_abs"]).all()
    summary = found.summary()
    assert summary["explain/resid_pre/interaction/mean_abs"] > 0
    assert summary["explain/dominant"].startswith(f"{found.outliers[0]}:")
    sentences = found.sentences()
    assert any("interaction with the rest of its layer and other positions" in line for line in sentences)
    assert any("L1.resid_pre at" in line and "interaction with other positions" in line for line in sentences)


def test_the_component_at_a_span_that_is_asked_for_is_split(run):
    spans = "positions.spans={S2: 'Mary:2', end: 16}"
    found = run("sites=heads", spans, "interactions='1.2@S2'").findings["explain"]
    assert found.split.component == "1.2 at S2"
    assert found.split.others[:2] == ("1.0 at S2", "1.1 at S2")
    assert found.split.others[-1] == "1.3 elsewhere"
    assert found.interaction == pytest.approx(float(found.split.shares.sum()) + found.higher_order)
    keys = run("sites=[heads,k]", "explain=[k]", "interactions=1.2.k").findings["explain"]
    assert (keys.site, keys.split.component, keys.further) == ("k", "1.2.k", {})
    assert set(keys.tables()) == {"k_explanation", "k_interactions"}


REFUSED = {
    r"^interactions: got 1\.2 with positions=each, wanted a component of the run's maps, such as 1\.2@16\.": (
        "positions=each",
        "interactions='1.2'",
    ),
    r"^interactions: got 1\.2@S1, but the maps have no span 'S1', wanted one of S2\. Write 1\.2@S2\.": (
        "positions.spans={S2: 'Mary:2'}",
        "interactions='1.2@S1'",
    ),
    r"^interactions: got 1\.2@10 with positions=all, wanted .*, such as 1\.2 alone\.": ("interactions='1.2@10'",),
    r"^interactions: got L7\.resid_pre, but the model has 3 layers": ("explain=all", "interactions=L7.resid_pre"),
    r"^interactions: got L1\.resid_pre with explain=true .* explained\. Set explain=resid_pre": (
        "interactions=L1.resid_pre",
    ),
    r"^explain: got neurons with sites=heads resid_pre, wanted neurons among the sites": ("explain=neurons",),
    r"^explain: got \['heads', 'none'\], wanted true, false, all, or sites of the run": ("explain=[heads,none]",),
    r"^explain: .*it is not of ig\.path=single with positions, at which": (
        "explain=all",
        "ig.path=single",
        "positions=each",
    ),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_explained_is_refused_in_one_line(run, said, monkeypatch):
    monkeypatch.setattr(pipeline.steps, "run_model", lambda *_: pytest.fail("the model loaded"))
    with pytest.raises(InputError, match=said):
        run("sites=[heads,resid_pre]", *REFUSED[said])


def test_a_single_path_at_positions_has_no_chain_and_a_run_says_so(run, small):
    result = run("sites=heads", "positions=last", "ig.path=single")
    assert "explain" not in result.findings
    assert any("explain: left out; it is not of ig.path=single with positions" in each for each in result.warnings)
    ap = activation_patching(small("gpt2"), PAIR, positions="last")
    with (
        open_pairs(small("gpt2"), PAIR) as opened,
        pytest.raises(InputError, match=r"^path: got single with positions"),
    ):
        decompose(opened, ap, ap, path="single", positions="last")
