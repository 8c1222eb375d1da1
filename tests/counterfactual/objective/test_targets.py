"""Sets, spans, sites and metrics of a search: against hooks in the whole model, and the public methods."""

import itertools
from contextlib import nullcontext
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from helpers.searched import ABBA, PAIRS, searched

from igap import InputError, PromptPair, activation_patching, attribution_patching, integrated_gradients, output_curve
from igap.analyses.sets import effects as sets
from igap.components import hook_name
from igap.counterfactual.config import Constraints
from igap.counterfactual.objective import evaluator
from igap.counterfactual.objective.evaluator import Evaluator
from igap.counterfactual.objective.objective import Objective
from igap.counterfactual.objective.patch import check_reach, find_positions, resolve
from igap.counterfactual.target import locate_target, normalize_target
from igap.engine.activations import borrow
from igap.inputs.prompts import tokenize
from igap.models.families import widths_of_model

ALPHAS = [i / 10 for i in range(11)]
SPANS = {"S2": [10], "END": [16], "last": [16], "10": [10], "13-15": [13, 14, 15], "bottle of milk": [13, 14, 15]}
"""Of ABBA's clean prompt with its BOS token: positions that a span stands for."""
TARGETS = [
    "1.2@S2", "L0.N5@END", "0.1+1.2", "0.1+1.2+L1.N5@S2", "0.1+L0.N5+2.3@diff", "1.2@diff", "1.2@13-15", "2.1@last",
    "L1.resid_pre@S2", "L1.resid_post", "L2.attn_out@END", "L1.mlp_out", "L1.resid_mid@S2", "1.2.q@S2", "1.1.k",
    "1.2.v@bottle of milk", "1.2@END",
]  # fmt: skip


def located(model, name):
    found = locate_target(name, model.cfg.n_layers, widths_of_model(model))
    return resolve(found, tokenize(model, PAIRS[0]))


def evaluated(model, name, kind="rules", n_pairs=3, **options):
    bound = searched(kind, PAIRS[:n_pairs], model.tokenizer, bos=bool(model.cfg.default_prepend_bos))
    with borrow(model):
        return Evaluator(model, bound, located(model, name), **options)


def some(space, n=3):
    return list(itertools.islice(space.candidates(), 1, None, max(1, space.size // n)))[:n]


def table(bound, candidates, number):
    """`[candidate, pair]` of a number of a clean and a corrupted text; 0 where they are the same."""
    rows = [
        [
            0.0 if text == pair.clean else number(pair, text)
            for pair, text in zip(bound.pairs, bound.texts(one), strict=True)
        ]
        for one in candidates
    ]
    return torch.tensor(rows, dtype=torch.float64)


def close(found, expected, atol=1e-10):
    assert expected.abs().max() > 1e-5, "there is something to compare"
    torch.testing.assert_close(found.double(), expected, atol=atol, rtol=0)


def value(metric, logits, clean, pair, model):
    """F from its definition, of the logits after the last token."""
    answer, distractor = (int(model.to_tokens(word, prepend_bos=False)) for word in (pair.answer, pair.distractor))
    logprobs, before = logits.log_softmax(-1), clean.log_softmax(-1)
    return {
        "logit_diff": lambda: logits[answer] - logits[distractor],
        "logit": lambda: logits[answer],
        "logprob": lambda: logprobs[answer],
        "prob": lambda: logprobs[answer].exp(),
        "prob_diff": lambda: logprobs[answer].exp() - logprobs[distractor].exp(),
        "kl": lambda: (before.exp() * (before - logprobs)).sum(),
        "custom": lambda: logits[answer] ** 2 / 10,
    }[metric if isinstance(metric, str) else "custom"]().item()


def square(logits, pair):
    return logits[:, pair.answer] ** 2 / 10


@cache
def unchanged(model, text):
    """The logits after the last token, and every activation by the name of its hook."""
    with torch.no_grad():
        logits, activations = model.run_with_cache(model.to_tokens(text))
    return logits[0, -1], activations


def by_hooks(model, name, pair, text, metric="logit_diff"):
    """AP by hooks that write the corrupted run's activation into that of the clean one, wherever it has become."""
    target = located(model, name)
    clean, corrupted = model.to_tokens(pair.clean), model.to_tokens(text)
    where = (clean != corrupted)[0].nonzero().flatten().tolist() if target.span == "diff" else (
        slice(None) if target.span is None else SPANS[target.span]
    )  # fmt: skip
    unpatched, there = unchanged(model, pair.clean)[0], unchanged(model, text)[1]

    def hook(site, layer, index):
        new = there[hook_name(site, layer)]

        def write(old, hook):
            if old.ndim == 3 and site != "neurons":
                old[:, where] = new[:, where]
            else:
                old[:, where, index] = new[:, where, index]
            return old

        return hook_name(site, layer), write

    with torch.no_grad():
        patched = model.run_with_hooks(clean, fwd_hooks=[hook(*member) for member in target.members])[0, -1]
    return value(metric, patched, unpatched, pair, model) - value(metric, unpatched, unpatched, pair, model)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("hooks", [False, True])
def test_ap_of_any_target_is_that_of_hooks_in_the_whole_model(small, name, hooks):
    model = small("gpt2")
    found = evaluated(model, name, hooks=hooks)
    candidates = some(found.bound.space)
    close(found.effects(candidates), table(found.bound, candidates, lambda *texts: by_hooks(model, name, *texts)))


@pytest.mark.parametrize("name", ["1.2@S2", "0.1+1.2+L1.N5@END", "L1.resid_pre@S2"])
@pytest.mark.parametrize("metric", ["logit", "logprob", "prob", "prob_diff", "kl", square])
def test_ap_with_any_metric_is_that_of_hooks_in_the_whole_model(small, name, metric):
    model = small("gpt2")
    found = evaluated(model, name, "words", metric=metric)
    candidates = some(found.bound.space)

    def expected(pair, text):
        return by_hooks(model, name, pair, text, metric)

    close(found.effects(candidates), table(found.bound, candidates, expected))


@pytest.mark.parametrize(
    ("family", "name"), [("llama", "1.1.k@S2"), ("gpt_neox", "0.1+1.2@diff"), ("llama", "0.1+1.2.q")]
)
def test_other_families_and_key_value_heads(small, family, name):
    model = small(family)
    found = evaluated(model, name, n_pairs=2)
    candidates = some(found.bound.space)
    close(found.effects(candidates), table(found.bound, candidates, lambda *texts: by_hooks(model, name, *texts)))


def pair_of(pair, text):
    return PromptPair(pair.clean, text, pair.answer, pair.distractor, min_gap=0.0)


@pytest.mark.parametrize(
    ("name", "site", "at"),
    [
        ("1.2@S2", "heads", (1, 0, 2)),
        ("L0.N5@13-15", "neurons", (0, 0, 5)),
        ("L1.resid_pre@S2", "resid_pre", (1, 0, 0)),
    ],
)
@pytest.mark.parametrize("metric", ["logit_diff", "kl"])
def test_ig_of_a_component_at_a_span_is_its_part_of_the_joint_path(small, name, site, at, metric):
    model = small("gpt2")
    found = evaluated(model, name, metric=metric)
    candidates = some(found.bound.space)
    span = {"it": SPANS[name.partition("@")[2]]}

    def ig(pair, text):
        asked = pair_of(pair, text)
        return integrated_gradients(model, asked, site, n_steps=16, positions=span, metric=metric).effect[at].item()

    ig_values = found.effects(candidates, "ig")
    close(ig_values, table(found.bound, candidates, ig))
    assert (ig_values - found.effects(candidates)).abs().max() > 1e-5, "all positions move"


@pytest.mark.parametrize("name", ["0.1+1.2+L1.N5", "0.1+1.2@S2", "0.1+1.2@diff"])
def test_a_set_is_what_set_effects_and_output_curve_say(small, monkeypatch, name):
    monkeypatch.setattr(evaluator, "NODES", 3)  # few, so that IG is not AP
    model = small("gpt2")
    found = evaluated(model, name, batch_size=2)
    candidates = some(found.bound.space)
    components, _, span = name.partition("@")
    positions = "all" if not span else "diff" if span == "diff" else {"it": SPANS[span]}

    def effects(pair, text):
        return sets.set_effects(model, pair_of(pair, text), components, positions=positions, n_steps=3)

    def bend(pair, text):
        curve = output_curve(model, pair_of(pair, text), components, alphas=ALPHAS, positions=positions)
        return curve.max_deviation_from_chord.item()

    close(found.effects(candidates), table(found.bound, candidates, lambda *texts: effects(*texts).effect))
    close(
        found.effects(candidates, "ig"), table(found.bound, candidates, lambda *texts: effects(*texts).ig.sum().item())
    )
    close(found.effects(candidates, "curve"), table(found.bound, candidates, bend))


@pytest.mark.parametrize("span", ["S2", "diff"])
def test_other_heads_are_measured_at_the_same_span(small, span):
    model = small("gpt2")
    found = evaluated(model, f"1.2@{span}", metric="logprob")
    candidates = some(found.bound.space)

    def mean(pair, text):
        positions = "diff" if span == "diff" else {"it": SPANS[span]}
        effects = attribution_patching(model, pair_of(pair, text), positions=positions, metric="logprob").effect
        effects = effects.reshape(effects.shape[0], effects.shape[-1]).abs()
        effects[1, 2] = 0
        return effects.sum().item() / (effects.numel() - 1)

    close(found.effects(candidates, "mean_other_heads"), table(found.bound, candidates, mean))


@pytest.mark.parametrize(
    ("name", "kind", "hooks"),
    [
        ("0.1+1.2+L1.N5@S2", "rules", False),
        ("0.1+1.2+L1.N5@S2", "words", True),
        ("L1.resid_pre@13-15", "words", False),
        ("L1.resid_pre@13-15", "rules", True),
        ("1.2@END", "words", False),
        ("1.2@END", "rules", True),
    ],
)
def test_the_gradient_of_any_target_is_that_of_finite_differences(small, name, kind, hooks):
    """By the evaluator's own AP of moved embeddings, which is checked above at the words' embeddings."""
    model = small("gpt2")
    found = evaluated(model, name, kind, 2, metric="kl", hooks=hooks)
    *_, candidate = some(found.bound.space)
    weights = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    gradient = found.gradient([candidate], weights)
    move = torch.randn_like(gradient)
    tokens, embed = found.bound.tokens([candidate]), found._embed

    def effect(step):
        class Moved:
            def __getitem__(self, index):
                return embed[index] + step * move

        found._embed = Moved()
        try:
            sites = found._activations(found._changes(tokens))
            mask = found._patch.mask(tokens)
            moved = found._patch.value(found._end(sites, mask), mask)[:, 0]
        finally:
            found._embed = embed
        return (moved * weights[0]).sum().item()

    with torch.no_grad():
        slope = (effect(1e-5) - effect(-1e-5)) / 2e-5
    expected = (gradient * move).sum().item()
    assert abs(expected) > 1e-6
    assert slope == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["0.1+1.2+L1.N5@S2", "1.2@END"])
def test_the_gradient_of_the_error_of_atp_is_that_of_finite_differences(small, name):
    """By moved embeddings again: AtP's products with dF/da, which plain hooks give, less AP of the second member."""
    model = small("gpt2")
    found = evaluated(model, name, "rules", 2, metric="prob")
    *_, candidate = some(found.bound.space)
    weights = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    place = min(1, len(found.target.members) - 1)
    before = found.cost
    gradient = found.gradient([candidate], weights, place, of_error=True)
    assert found.cost - before == pytest.approx(3 * (found._prefix_cost + found._suffix_cost))
    move = torch.randn_like(gradient)
    tokens, embed = found.bound.tokens([candidate]), found._embed
    member = evaluated(model, "1.2" + found.target.at, "rules", 2, metric="prob")
    maps = {text: attribution_patching(model, PromptPair(pair.clean, text, pair.answer, pair.distractor, min_gap=0),
                                       metric="prob", positions={"span": list(SPANS[found.target.span])})
            for pair, text in zip(found.bound.pairs, found.bound.texts(candidate), strict=True)}  # fmt: skip
    expected = torch.stack([made.effect[1, 0, 2] for made in maps.values()])

    def error(step):
        class Moved:
            def __getitem__(self, index):
                return embed[index] + step * move

        found._embed = Moved()
        try:
            own = found._activations(found._changes(tokens))["heads", 1][:, :, :, 2]
        finally:
            found._embed = embed
        patch = member._patch
        mask = patch.mask(tokens)
        end = patch.end(own, mask)
        estimate = patch.estimates([end])[:, 0, 0]
        if step == 0:
            torch.testing.assert_close(estimate, expected.to(estimate), atol=1e-10, rtol=0)
        return ((estimate - patch.value(end, mask)[:, 0]) * weights[0]).sum().item()

    with torch.no_grad():
        error(0.0)
        slope = (error(1e-5) - error(-1e-5)) / 2e-5
    product = (gradient * move).sum().item()
    assert abs(product) > 1e-7
    assert slope == pytest.approx(product, rel=1e-4)


@pytest.mark.parametrize("name", ["0.1+1.2+L0.N5", "0.1+1.2@S2", "L1.resid_pre@END"])
def test_in_a_linear_model_gains_of_any_target_are_what_swaps_gain(linear, name):
    found = evaluated(linear, name)
    space, weights = found.bound.space, torch.linspace(0.5, 2, 3, dtype=torch.float64)
    (anchor,) = some(space, 1)
    before, largest = found.effects([anchor])[0] @ weights, 0.0
    for slot, gain in enumerate(found.first_order_scores(anchor, weights)):
        swaps = [(*anchor[:slot], option, *anchor[slot + 1 :]) for option in range(space.sizes[slot])]
        torch.testing.assert_close(gain, found.effects(swaps) @ weights - before, atol=1e-8, rtol=1e-6)
        largest = max(largest, gain.abs().max().item())
    assert largest > 1e-4


@pytest.mark.parametrize(("name", "where"), [("1.2@S2", [10]), ("0.1+1.2@13-15", [13, 14, 15])])
def test_activations_are_those_at_the_span(small, name, where):
    model = small("gpt2")
    found = evaluated(model, name)
    candidates = some(found.bound.space)
    tokens = found.bound.tokens(candidates)
    cache = model.run_with_cache(tokens.flatten(0, 1))[1]
    parts = [cache[hook_name(site, layer)][:, where, index] for site, layer, index in found.target.members]
    expected = torch.cat(parts, -1).detach().unflatten(0, tokens.shape[:2])
    close(found.activations(tokens), expected)
    close(found.activations_of_others(tokens.flatten(0, 1)), expected.flatten(0, 1), atol=1e-12)


def test_float32_differs_from_activation_patching_by_rounding(ioi_mini, pair):
    name = "0.3@S2"
    bound = searched("rules", (pair,), ioi_mini.tokenizer)
    with borrow(ioi_mini):
        found = Evaluator(ioi_mini, bound, located(ioi_mini, name), metric="logprob")
    candidates = some(bound.space)

    def ap(clean, text):
        asked = pair_of(clean, text)
        return activation_patching(ioi_mini, asked, positions={"it": [10]}, metric="logprob").effect[0, 0, 3].item()

    close(found.effects(candidates), table(bound, candidates, ap), atol=1e-5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("09.6", "9.6"),
        ("9.9+9.6", "9.6+9.9"),
        ("10.0+L9.N3+9.6@S2", "9.6+L9.N3+10.0@S2"),
        ("L5.resid_pre@END", "L5.resid_pre@END"),
        ("9.6.q@S1+1", "9.6.q@S1+1"),
        ("ioi:name-mover@last", "ioi:name-mover@last"),
    ],
)
def test_a_target_has_one_name(text, expected):
    assert normalize_target(text) == normalize_target(expected) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "wanted a head such as 9.6 or a neuron"),
        ("top3:ap", "wanted a head such as 9.6 or a neuron"),
        (
            "9.6@",
            "wanted a span after @, a role of a generated prompt (IO, S1, S1+1, S2, END), last, diff, an index or",
        ),
        ("9.6@each", "as in 9.6@last; not each"),
        ("9.6+9.6", "each component once, not 9.6 twice"),
    ],
)
def test_what_is_no_target_is_refused(text, message):
    with pytest.raises(InputError) as error:
        locate_target(text, 12, {})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("1.2@17", "head: got 1.2@17, wanted one or more positions of the clean prompt, 0 to 16"),
        ("1.2@Mary", "which the clean prompt has 2 times"),
        ("1.2@zebra", "wanted words of the clean prompt"),
        (
            "1.2@5-2",
            "head: got 1.2@5-2, wanted a position, a range of them (3-4) or words of the clean prompt after the @",
        ),
    ],
)
def test_a_span_that_the_prompt_does_not_have_is_refused(small, name, message):
    with pytest.raises(InputError) as error:
        located(small("gpt2"), name)
    assert message in str(error.value)


def test_a_role_of_prompts_that_have_none_is_refused(small):
    model = small("gpt2")
    other = PromptPair("After John went to the store", "After Mary went to the store", " John", " Mary", min_gap=0.0)
    with pytest.raises(
        InputError,
        match=r"^head: got 1\.2@S2, but a clean prompt has the answer 1 [^;]*\. Use 1\.2@last, or another span\.$",
    ):
        find_positions(located(model, "1.2@S2"), [tokenize(model, other)])


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("1.2@1", [2, 4], "position 1, which no prompt of the space changes: they differ from 2 on"),
        ("L0.resid_pre@3", [2, 4], "position 3, which no prompt of the space changes: they differ at 2, 4"),
        ("2.1@10", [2, 4], "of the last layer, where position 16 alone is read"),
        ("1.2@3", [2, 4], None),
        ("L0.resid_pre@4", [2, 4], None),
        ("2.1.k@10", [2, 4], None),
        ("2.1@END", [2, 4], None),
        ("1.2@diff", [2, 4], None),
    ],
)
def test_what_no_prompt_changes_or_f_does_not_see_is_refused(small, name, changed, message):
    model = small("gpt2")
    target, pairs = located(model, name), [tokenize(model, ABBA)]
    if message is None:
        check_reach(target, pairs, changed, model.cfg.n_layers)
        return
    with pytest.raises(InputError) as error:
        check_reach(target, pairs, changed, model.cfg.n_layers)
    assert message in str(error.value)


def test_in_the_last_layer_every_position_of_an_answer_of_several_tokens_is_read(small):
    model = small("gpt2")
    pair = tokenize(model, replace(ABBA, answer=ABBA.answer + ABBA.distractor), several=True)
    assert pair.n_read == 2
    for position, refused in ((15, True), (16, False), (17, False)):
        target = resolve(locate_target(f"2.1@{position}", model.cfg.n_layers, widths_of_model(model)), pair)
        with pytest.raises(InputError, match="positions from 16 on alone are read") if refused else nullcontext():
            check_reach(target, [pair], [2, 4], model.cfg.n_layers)


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("1.2+0.1", {"terms": ("selectivity",)}, "objective: got selectivity of 0.1+1.2, wanted it of one component"),
        ("L1.resid_pre", {"terms": ("selectivity",)}, "wanted it of a head or a neuron"),
        ("1.2+0.1", {"terms": ("disagreement",)}, "objective: got disagreement of 0.1+1.2, whose IG is its AP"),
        ("L1.resid_pre", {"terms": ("disagreement",)}, "whose IG is its AP"),
        (
            "1.2@diff",
            {"constraints": Constraints(max_percentile=50)},
            "constraints.max_percentile: got 50 with 1.2@diff",
        ),
        ("L1.resid_pre@S2", {"terms": ("disagreement",)}, None),
        ("0.1+1.2", {"terms": ("error", "ap")}, "objective: got error and ap of 0.1+1.2, whose members are examined"),
        ("0.1+1.2", {"terms": ("error",), "constraints": Constraints(max_percentile=9)}, "got 9 with objective=error"),
        (
            "0.1+1.2",
            {"terms": ("error",), "constraints": Constraints(max_downstream=9)},
            "constraints.max_downstream: got 9 with objective=error of 0.1+1.2, whose members are patched one by one",
        ),
        ("0.1+1.2", {"terms": ("error", "downstream")}, "objective: got downstream with objective=error of 0.1+1.2"),
        (
            "L1.resid_pre",
            {"terms": ("error",), "estimator": "ig"},
            "estimator: got ig of L1.resid_pre, whose IG is its",
        ),
        (
            "1.2@S2",
            {"terms": ("error",), "estimator": "atp_star"},
            "got atp_star of 1.2@S2, but it is of all positions",
        ),
        ("1.2", {"terms": ("error",), "metric": "kl"}, "got atp of 1.2, but it is to first order, and kl is least on"),
        ("1.2", {"terms": ("error", "ap"), "estimator": "ig_zero"}, None),
        ("0.1+1.2@S2", {"terms": ("error", "fluency")}, None),
        ("1.2@S2", {"terms": ("selectivity",)}, None),
    ],
)
def test_terms_that_are_not_defined_of_a_target_are_refused(small, name, asked, message):
    target = located(small("gpt2"), name)
    if message is None:
        Objective(**asked).check(target)
        return
    with pytest.raises(InputError) as error:
        Objective(**asked).check(target)
    assert message in str(error.value)


def test_metrics_that_are_least_on_the_clean_prompt_have_no_drop_and_no_selectivity():
    with pytest.raises(InputError, match=r"sign: got drop with metric=kl, which is least on the clean prompt"):
        Objective(sign="drop", metric="kl")
    with pytest.raises(InputError, match=r"metric: got js with selectivity, but it is least on the clean prompt"):
        Objective(("selectivity",), metric="js")
    assert Objective(("ig",), sign="drop", metric="kl").unit == "nats"
    assert (Objective().unit, Objective(metric="prob").unit, Objective(metric=np.sum).unit) == (
        "logits",
        "probability",
        "F",
    )
