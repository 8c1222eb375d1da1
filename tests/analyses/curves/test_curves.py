"""F along the path of a component: by hand, against hooks, and against activation and attribution patching."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import handmade
from helpers.by_hand import ByHand
from helpers.checkpoints import save_beside
from helpers.opened import follow
from helpers.reference import HOOKS, Reference

from igap import InputError, PromptPair, activation_patching, attribution_patching, cli, output_curve, set_effects
from igap.cli.compose import compose_one
from igap.components import parse_component
from igap.inputs.prompts import tokenize
from igap.models import cached

MODELS = [("gpt2", "processed"), ("llama", "raw"), ("opt", "processed")]
ALPHAS = [-1, -0.25, 0.4, 0.5, 1.7]
NAMES = ["1.2", "L2.N5", "0.0"]


def slow(model, pair, name, alphas, run="clean", source="corrupted"):
    """One hooked forward an alpha."""
    plain = Reference(model, pair.clean, pair.corrupted, pair.answer, pair.distractor)
    site, layer, index = parse_component(name)
    hook = HOOKS[site].format(layer)
    start = plain.cache[run][hook]
    end = torch.zeros_like(start) if source == "zero" else plain.cache[source][hook]
    values = []
    with torch.no_grad():
        for alpha in alphas:
            there = start.clone()
            there[:, :, index] += alpha * (end - start)[:, :, index]
            values.append(float(plain.f(run, hook, there)))
    return values


def test_the_two_heads_of_a_square_have_the_curves_worked_by_hand(tmp_path):
    """F = s^2, s = 4 + 2 alpha and 4 - 3 alpha. From the chord a parabola of second derivative F'' is off by -F''/8:
    F'' = 8 and 18. The second falls to its trough at 4/3, beyond which the square's max(0, s) keeps it at 0."""
    alphas = np.linspace(-1, 1.25, 46)
    found = output_curve(handmade.two_heads(tmp_path), handmade.PAIR, ["0.0", "0.1"], alphas=alphas.tolist())
    np.testing.assert_allclose(found.values, [(4 + 2 * alphas) ** 2, (4 - 3 * alphas) ** 2], atol=1e-9)
    np.testing.assert_allclose(found.ends, [[16, 36], [16, 1]], atol=1e-9)
    np.testing.assert_allclose(found.effects, [20, -15], atol=1e-9)
    np.testing.assert_allclose(found.slopes, [16, -24], atol=1e-9)
    np.testing.assert_allclose(found.max_deviation_from_chord, [-1, -18 / 8], atol=1e-9)
    assert found.extrema(0) == found.extrema(1) == ()
    mirrored = output_curve(handmade.two_heads(tmp_path), handmade.PAIR, "0.1", direction="denoising", alphas=[0, 1, 3])
    np.testing.assert_allclose(mirrored.values, [[9, 36, 144]], atol=1e-9)  # s = 3 + 3 alpha


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
def test_the_curve_of_a_component_of_any_site_is_the_model_by_hand_at_each_alpha(tmp_path, architecture):
    model, plain = save_beside(tmp_path, architecture)
    pair = PromptPair(
        "After John and Mary gave Mary a", "After Tom and Mary gave John a", " John", " Mary", min_gap=0.0
    )
    tokens = tokenize(model, pair)
    hand = ByHand(plain, tokens.answer, tokens.distractor)
    starts, ends = hand.read(tokens.clean), hand.read(tokens.corrupted)
    names = ["1.2", "L1.N3", "1.2.q", "0.1.k", "2.3.v", "L1.resid_pre", "L0.resid_post", "L2.attn_out", "L1.mlp_out"]
    names += ["L1.resid_mid"] if architecture == "gpt2" else []
    for route in ("suffix", "hooks"):
        found = output_curve(model, pair, names, alphas=ALPHAS, route=route)
        for name, curve in zip(names, found.values, strict=True):
            site, layer, index = parse_component(name)
            start, end = starts[site, layer], ends[site, layer]
            rows = start.expand(len(ALPHAS), *start.shape[1:]).clone()
            rows[:, :, index] += torch.tensor(ALPHAS, dtype=torch.float64)[:, None, None] * (end - start)[:, :, index]
            with torch.no_grad():
                np.testing.assert_allclose(curve, hand.given(tokens.clean, site, layer, rows), rtol=0, atol=1e-10)
            assert np.ptp(curve) > 1e-3


def test_a_set_moves_together(tmp_path):
    """F = s^2 with s = 4 + 2 alpha - 3 alpha; a component of it alone is as before, bit for bit."""
    model, alphas = handmade.two_heads(tmp_path), [0, 0.5, 1, 2]
    found = output_curve(model, handmade.PAIR, ["0.0+0.1", "0.1"], alphas=alphas)
    np.testing.assert_allclose(found.values[0], [(4 - alpha) ** 2 for alpha in alphas], atol=1e-7)
    np.testing.assert_allclose(found.slopes[0], -8, atol=1e-7)
    assert found.names == ("0.0+0.1", "0.1")
    assert (found.by_pair[:, 1] == output_curve(model, handmade.PAIR, "0.1", alphas=alphas).by_pair[:, 0]).all()


@pytest.mark.parametrize("route", ["suffix", "hooks"])
def test_a_sets_curve_is_plain_hooks_at_each_of_its_members(small, pair, route):
    model, text = small(), "2.1+0.3+L1.N5"
    found = output_curve(model, pair, text, alphas=ALPHAS, route=route)
    plain = Reference(model, *pair.texts)
    expected = []
    for alpha in ALPHAS:
        hooks = []
        for site, layer, index in map(parse_component, text.split("+")):
            hook = HOOKS[site].format(layer)
            start, end = plain.cache["clean"][hook][:, :, index], plain.cache["corrupted"][hook][:, :, index]
            held = start + alpha * (end - start)

            def hold(activation, hook, index=index, held=held):
                activation = activation.clone()
                activation[:, :, index] = held
                return activation

            hooks.append((hook, hold))
        with torch.no_grad():
            expected.append(float(plain.metric(model.run_with_hooks(plain.tokens["clean"], fwd_hooks=hooks))))
    np.testing.assert_allclose(found.values[0], expected, atol=1e-11)
    together = set_effects(model, pair, text, n_steps=1)
    np.testing.assert_allclose(found.effects, [together.effect], atol=1e-11)


@pytest.mark.parametrize("name", MODELS, ids="-".join)
@pytest.mark.parametrize("baseline", ["corrupted", "zero"])
def test_curves_equal_plain_hooks(small, pair, name, baseline):
    found = output_curve(small(*name), pair, NAMES, alphas=ALPHAS, baseline=baseline)
    for component, values in zip(NAMES, found.values, strict=True):
        expected = slow(small(*name), pair, component, ALPHAS, source=baseline)
        assert np.ptp(expected) > 1e-5
        np.testing.assert_allclose(values, expected, atol=1e-11)


def test_the_curve_starts_at_the_run_ends_at_activation_patching_and_leaves_as_attribution_patching(small, pair):
    for options in ({}, {"baseline": "zero"}, {"direction": "denoising"}):
        found = output_curve(small(), pair, NAMES, **options)
        plain = Reference(small(), pair.clean, pair.corrupted, pair.answer, pair.distractor)
        run = plain.f("corrupted" if "direction" in options else "clean").item()
        np.testing.assert_allclose(found.ends[:, 0], run, atol=1e-12)
        assert found.alphas[[0, 20, 40, 60]].tolist() == [-1, 0, 1, 2]
        np.testing.assert_array_equal(found.values[:, [20, 40]], found.ends)
        for i, name in enumerate(NAMES):
            site, layer, index = parse_component(name)
            ap, atp = (method(small(), pair, site, **options) for method in (activation_patching, attribution_patching))
            assert found.effects[i] == pytest.approx(float(ap.effect[layer, index]), abs=1e-12)
            assert found.slopes[i] == pytest.approx(float(atp.effect[layer, index]), abs=1e-12)


def test_a_linear_model_has_straight_curves(tmp_path, pair):
    found = output_curve(handmade.linear(tmp_path), pair, NAMES)
    assert (abs(found.effects) > 1e-3).all()
    np.testing.assert_allclose(found.max_deviation_from_chord, 0, atol=1e-9)
    np.testing.assert_allclose(found.slopes, found.effects, atol=1e-9)
    assert [found.extrema(i) for i in range(len(NAMES))] == [(), (), ()]


def test_of_several_pairs_the_mean_is_given_and_the_pairs_are_kept_in_their_order(small, pair):
    other = PromptPair(
        "John and Mary went to the store, Mary gave it to", "John and Mary went to the store, John gave it to",
        " Tom", " Mary",
    )  # fmt: skip
    pairs = [pair, other, replace(pair, answer=" Anna")]
    together = output_curve(small(), pairs, NAMES, alphas=ALPHAS, batch_size=1)
    alone = [output_curve(small(), one, NAMES, alphas=ALPHAS, route="hooks") for one in pairs]
    np.testing.assert_allclose(together.by_pair, np.concatenate([one.by_pair for one in alone]), atol=1e-11)
    for name in ("values", "ends", "slopes"):
        mean = np.mean([getattr(one, name) for one in alone], axis=0)
        np.testing.assert_allclose(getattr(together, name), mean, atol=1e-11)
    assert np.ptp(together.by_pair[:, 0, 0]) > 1e-3
    table = together.tables()["curves"]
    spread = np.std([one.values for one in alone], axis=0, ddof=1).ravel()
    np.testing.assert_allclose(table["logit_diff_sd"], spread, atol=1e-11)


def test_without_an_alpha_on_the_path_the_bend_is_missing_with_its_reason(small, pair):
    found = output_curve(small(), pair, "0.0", alphas=[-1, 0, 1, 2])
    assert np.isnan(found.max_deviation_from_chord).all()
    summary = found.summary()
    assert summary["curves/max_abs_bend"] is None
    assert summary["curves/max_abs_bend/reason"] == "no alpha is strictly between 0 and 1"
    assert "nan" not in " ".join(found.sentences())


@pytest.mark.parametrize("alphas", [[0, 1], [0, 1, 1], [1, 0.5, 0], [0, "a", 1], [0, float("nan"), 1], [0, True, 2]])
def test_alphas_that_are_not_ascending_numbers_are_refused(small, pair, unchecked, alphas):
    with pytest.raises(InputError, match=r"alphas.*: got .* wanted (3 to 10000 numbers from -10{6}|a number, finite)"):
        output_curve(small(), pair, "0.0", alphas=alphas)


def test_alphas_beyond_what_the_model_can_compute_are_refused(ioi_mini, pair):
    with pytest.raises(InputError, match=r"^curves\.alphas: got .*1e\+38\], wanted 3 to 10000 numbers from -10{6}"):
        output_curve(ioi_mini, pair, "L0.N3", alphas=[0, 1, 1e38])


def test_an_output_that_is_not_finite_is_refused_whatever_the_alphas_may_be(ioi_mini, pair, monkeypatch):
    monkeypatch.setattr(
        "igap.analyses.curves.curves.check_alphas", lambda alphas: None
    )  # weights could be as large as this alpha
    with pytest.raises(InputError, match=r"^curves\.alphas: got 0 to 1e\+38, where F is not finite"):
        output_curve(ioi_mini, pair, "L0.N3", alphas=[0, 1, 1e38])


@pytest.mark.parametrize("name", ["3.0", "0.4", "L0.N48", "nine"])
def test_a_component_that_the_model_does_not_have_is_refused(small, pair, name):
    with pytest.raises(InputError, match=r"^curves\.components: got"):
        output_curve(small(), pair, ["0.0", name])


def test_extrema_and_numbers_of_a_curve_are_in_its_tables(ioi_mini, pair):
    found = output_curve(ioi_mini, pair, ["0.5", "3.1", "0.3"], baseline="zero")
    tables = found.tables()
    assert tables["curves"].groupby("name").size().to_dict() == {"0.3": 61, "0.5": 61, "3.1": 61}
    numbers = tables["curves_components"].set_index("name")
    np.testing.assert_array_equal(numbers["effect"], numbers["logit_diff_1"] - numbers["logit_diff_0"])
    np.testing.assert_array_equal(numbers["bend"], found.max_deviation_from_chord)
    inside = tables["curves_extrema"].query("inside")
    assert inside["name"].tolist() == ["0.5"]
    assert 0 < inside["alpha"].iloc[0] < 1
    on_grid = found.values[0]
    assert abs(inside["logit_diff"].iloc[0] - on_grid[20:41].min()) < 1e-3
    (outside,) = tables["curves_extrema"].query("not inside").itertuples()
    assert (outside.name, outside.kind) == ("0.3", "trough")
    assert -1 < outside.alpha < 0
    summary = found.summary()
    assert (summary["curves/n_extrema_inside"], summary["curves/n_extrema_outside"]) == (1, 1)
    assert "0.5 trough at alpha 0.2" in found.sentences()[0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("curves.components=9.6", "curves.components: got 9.6, but the model has 4 layers (0 to 3). Name one that"),
        ("curves.components=1.2 L1.N512", "curves.components: got L1.N512, but the model has 512 neurons in a layer"),
        ("curves.components=head 1", "curves.components: got 'head 1', wanted default, none, or names such as '9.6"),
        ("curves.alphas=[0,one,2]", "curves.alphas: got [0, 'one', 2], wanted 3 to 10000 numbers from -1000000 to"),
        ("interactions=0.8", "interactions: got 0.8, but the model has 8 heads in a layer (0 to 7). Name one that"),
    ],
)
def test_what_a_run_cannot_draw_is_refused_before_the_model_loads(monkeypatch, capsys, override, message):
    monkeypatch.setattr(cached, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    assert cli.main(["run", override, "tracking=disabled"]) == 2
    assert capsys.readouterr().err.startswith(f"igap: {message}")


def test_a_run_draws_the_curves_it_is_asked_for(ioi_mini, pair):
    config = compose_one(["curves.components='0.5 L1.N3'", "curves.alphas=[0,0.5,3]"]).config
    found = follow("curves", config, ioi_mini, (pair,), {}, {})
    expected = output_curve(ioi_mini, pair, ["0.5", "L1.N3"], alphas=[0, 0.5, 3])
    np.testing.assert_array_equal(found.by_pair, expected.by_pair)
    assert found.roles == ()
