"""Numbers of candidates: against the public methods, against plain hooks, by hand on models that are linear."""

import functools
import itertools
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from helpers.checkpoints import save_checkpoint
from helpers.families import FAMILIES, save
from helpers.reference import HOOKS, Reference
from helpers.searched import ABBA, PAIRS, TEMPLATE, searched

from igap import (
    InputError,
    PromptPair,
    activation_patching,
    attribution_patching,
    integrated_gradients,
    load_model,
    output_curve,
    search,
)
from igap.components import component_name, hook_name
from igap.counterfactual.objective import evaluator
from igap.counterfactual.objective.evaluator import Evaluator, Number
from igap.counterfactual.spaces.template import SLOTS, bind_template, generate_clean_prompts, template_space
from igap.counterfactual.target import Target
from igap.engine.activations import borrow

NUMBERS = get_args(Number)

HEAD, NEURON = Target((("heads", 1, 2),)), Target((("neurons", 0, 5),))
KINDS = [("rules", 3), ("rules", 1), ("words", 3), ("substitute", 3), ("prompts", 3)]
ALPHAS = [i / 10 for i in range(11)]


def pairwise(kinds):
    """Each kind of space by both routes and of both targets, and each route with each target, not every three."""
    by_turns = itertools.cycle([((False, HEAD), (True, NEURON)), ((False, NEURON), (True, HEAD))])
    return [
        pytest.param(*kind, hooks, target, id=f"{kind[0]}-{kind[1]}-{'hooks' if hooks else 'suffix'}-{target.name}")
        for kind, both in zip(kinds, by_turns, strict=False)
        for hooks, target in both
    ]


def some(space, n=4):
    """Candidates from all over the space, the clean prompt not among them."""
    return list(itertools.islice(space.candidates(), 1, None, max(1, space.size // n)))[:n]


def evaluated(model, target, kind="rules", n_pairs=3, **options):
    bound = searched(kind, PAIRS[:n_pairs], model.tokenizer, bos=bool(model.cfg.default_prepend_bos))
    with borrow(model):
        return Evaluator(model, bound, target, **options)


def numbers(evaluator, candidates, names=NUMBERS):
    return evaluator.numbers(evaluator.bound.tokens(candidates), names)


def as_pairs(bound, candidate):
    """Each clean prompt with this candidate as its corrupted one; None where they are the same text."""
    for pair, text in zip(bound.pairs, bound.texts(candidate), strict=True):
        yield None if text == pair.clean else PromptPair(pair.clean, text, pair.answer, pair.distractor, min_gap=0.0)


def table(bound, candidates, number):
    """`[candidate, pair]` of a number of pairs; 0 where the candidate is the clean prompt."""
    rows = [[0.0 if pair is None else number(pair) for pair in as_pairs(bound, one)] for one in candidates]
    return torch.tensor(rows, dtype=torch.float64)


@functools.cache
def effects_of(method, model, pair, site):
    """The effects of a public method, which are asked for by each route and target."""
    return method(model, pair, site).effect


def close(found, expected, atol=1e-10):
    assert expected.abs().max() > 1e-4, "there is something to compare"
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


@pytest.mark.parametrize(("kind", "n_pairs", "hooks", "target"), pairwise(KINDS))
def test_ap_is_activation_patching_of_each_pair(small, kind, n_pairs, hooks, target):
    model = small("gpt2")
    found = evaluated(model, target, kind, n_pairs, hooks=hooks)
    assert found.route == ("hooks" if hooks else "suffix")
    candidates = some(found.bound.space, 2)

    def ap(pair):
        return effects_of(activation_patching, model, pair, target.single[0])[target.single[1], target.single[2]].item()

    close(found.effects(candidates), table(found.bound, candidates, ap))


@pytest.mark.parametrize(
    ("architecture", "processing"), [("gpt2", "raw"), ("gpt_neox", "processed"), ("opt", "raw"), ("gemma", "processed")]
)
def test_ap_and_ig_are_what_plain_hooks_give(small, architecture, processing):
    model = small(architecture, processing)
    for target in (HEAD, NEURON):
        found = evaluated(model, target, "rules", 2)
        candidates = some(found.bound.space, 2)
        hook = HOOKS[target.single[0]].format(target.single[1])

        def plain(pair, target=target, hook=hook):
            reference = Reference(model, *pair.texts)
            patched = reference.cache["clean"][hook].clone()
            patched[:, :, target.single[2]] = reference.cache["corrupted"][hook][:, :, target.single[2]]
            with torch.no_grad():
                return (reference.f("clean", hook, patched) - reference.f("clean")).item()

        def slow(pair, target=target):
            effects, _ = Reference(model, *pair.texts).integrated_gradients(target.single[0], evaluator.NODES)
            return effects[target.single[1], target.single[2]].item()

        close(found.effects(candidates), table(found.bound, candidates, plain))
        # Captum's nodes and weights are float32.
        close(found.effects(candidates, "ig"), table(found.bound, candidates, slow), atol=1e-6)


@pytest.mark.parametrize(("kind", "n_pairs"), [("rules", 3), ("words", 3)])
@pytest.mark.parametrize("target", [HEAD, NEURON], ids=["head", "neuron"])
def test_ig_and_curve_are_those_of_the_public_methods(small, kind, n_pairs, target):
    model = small("gpt2")
    found = evaluated(model, target, kind, n_pairs)
    candidates = some(found.bound.space, 2)

    def ig(pair):
        effects = integrated_gradients(model, pair, target.single[0], n_steps=16).effect
        return effects[target.single[1], target.single[2]].item()

    def bend(pair):
        name = component_name(target.single[0], target.single[1], target.single[2])
        return output_curve(model, pair, name, alphas=ALPHAS).max_deviation_from_chord.item()

    both = numbers(found, candidates, ["ig", "curve"])
    close(both["ig"], table(found.bound, candidates, ig))
    close(both["curve"], table(found.bound, candidates, bend))
    assert (both["ig"] - found.effects(candidates)).abs().max() > 1e-4, "the joint path is another question"


@pytest.mark.parametrize(("kind", "n_pairs", "hooks", "target"), pairwise([("rules", 3), ("words", 3), ("rules", 1)]))
def test_others_is_the_mean_size_of_attribution_patching_of_all_other_heads(small, kind, n_pairs, hooks, target):
    model = small("gpt2")
    found = evaluated(model, target, kind, n_pairs, hooks=hooks)
    candidates = some(found.bound.space)

    def mean(pair):
        effects = effects_of(attribution_patching, model, pair, "heads").abs()
        if target.single[0] == "heads":
            keep = torch.ones_like(effects, dtype=torch.bool)
            keep[target.single[1], target.single[2]] = False
            effects = effects[keep]
        return effects.mean().item()

    close(found.effects(candidates, "mean_other_heads"), table(found.bound, candidates, mean))


@pytest.mark.parametrize(("kind", "n_pairs"), [("rules", 3), ("words", 3), ("prompts", 3), ("rules", 1)])
def test_fluency_and_the_corrupted_metric_are_read_from_the_models_logits(small, kind, n_pairs):
    model = small("gpt2")
    found = evaluated(model, HEAD, kind, n_pairs)
    candidates = some(found.bound.space)

    def mean_log_probability(text):
        tokens = model.to_tokens(text)[0]
        with torch.no_grad():
            logits = model(tokens[None])[0].log_softmax(-1)
        return float(np.mean([logits[i - 1, tokens[i]].item() for i in range(1, len(tokens))]))

    def fluency(pair):
        return mean_log_probability(pair.corrupted) - mean_log_probability(pair.clean)

    def corrupted(pair):
        return Reference(model, *pair.texts).f("corrupted").item()

    both = numbers(found, candidates, ["fluency", "corrupted"])
    close(both["fluency"], table(found.bound, candidates, fluency))
    for i, one in enumerate(candidates):
        for j, (pair, text) in enumerate(zip(found.bound.pairs, found.bound.texts(one), strict=True)):
            answer, distractor = (int(model.to_tokens(w, prepend_bos=False)) for w in (pair.answer, pair.distractor))
            with torch.no_grad():
                logits = model(model.to_tokens(text))[0, -1]
            assert both["corrupted"][i, j].item() == pytest.approx(
                (logits[answer] - logits[distractor]).item(), abs=1e-10
            )


@pytest.mark.parametrize("hooks", [False, True])
@pytest.mark.parametrize("target", [HEAD, NEURON], ids=["head", "neuron"])
def test_the_clean_prompt_itself_scores_exactly_nothing(small, hooks, target):
    found = evaluated(small("gpt2"), target, hooks=hooks)
    keep = tuple(index or 0 for index in found.bound.space.keeps)
    assert found.bound.texts(keep) == [pair.clean for pair in found.bound.pairs]
    alone = numbers(found, [keep])
    for name in ("ap", "ig", "curve", "mean_other_heads", "fluency"):
        assert torch.equal(alone[name], torch.zeros(1, 3, dtype=torch.float64)), name
    torch.testing.assert_close(alone["corrupted"], found.clean.logit_diff[None], atol=1e-12, rtol=0)
    one_of_three = tuple(
        slot.options.index("Tom") if slot.name == "subject" else keep[i]
        for i, slot in enumerate(found.bound.space.slots)
    )
    assert numbers(found, [one_of_three])["ap"].ne(0).all()


@pytest.mark.parametrize("hooks", [False, True])
def test_many_at_once_are_as_each_alone_in_any_order_and_number(small, hooks, monkeypatch):
    monkeypatch.setattr(evaluator, "NODES", 3)
    model = small("gpt2")
    found = evaluated(model, HEAD, hooks=hooks)
    candidates, order = some(found.bound.space, 5), [3, 0, 3, 2, 4, 1]
    together = numbers(found, candidates)
    again = numbers(evaluated(model, HEAD, hooks=hooks, batch_size=2), [candidates[i] for i in order])
    for name in NUMBERS:
        alone = torch.cat([numbers(found, [one], [name])[name] for one in candidates])
        close(together[name], alone, atol=1e-12)
        close(again[name], together[name][order], atol=1e-12)
        assert together[name].dtype == torch.float64
        assert not together[name].requires_grad


def test_a_prompt_that_comes_twice_is_computed_once(small):
    found = evaluated(small("gpt2"), HEAD)
    one, other = some(found.bound.space, 2)
    computed = []
    for candidates in ([one, other], [one, other, one, one]):
        before = found.cost
        computed.append(numbers(found, candidates))
        spent = found.cost - before
        assert spent == pytest.approx(found.cost / 2 if len(candidates) > 2 else found.cost)
    for name, values in computed[1].items():
        assert torch.equal(values, computed[0][name][[0, 1, 0, 0]])


@pytest.mark.parametrize(
    ("kind", "n_given", "hooks", "passes"),
    [
        # Slots stand at the last 15 of 17 positions, head 1.2 in the second of three layers.
        ("rules", 3, False, {"prefix": 2 / 3 * 15 / 17, "suffix": 2 / 3 * 15 / 17}),
        ("words", 1, False, {"prefix": 2 / 3 * 15 / 17, "suffix": 2 / 3 * 15 / 17}),
        ("words", 1, True, {"prefix": 1, "suffix": 1}),
    ],
)
def test_cost_counts_passes_of_the_model(small, kind, n_given, hooks, passes):
    found = evaluated(small("gpt2"), HEAD, kind, hooks=hooks)
    candidates = some(found.bound.space, 4)
    prefix, suffix = n_given * passes["prefix"], 3 * passes["suffix"]
    once = {
        "ap": prefix + suffix,
        "ig": prefix + 16 * 3 * suffix,  # nodes, forward and twice that backward
        "curve": prefix + 10 * suffix,  # both ends, one of which is the clean run, and 9 alphas
        "mean_other_heads": n_given,
        "fluency": n_given,
        "corrupted": n_given,
    }
    for name, each in once.items():
        found.cost = 0.0
        numbers(found, candidates, [name])
        assert found.cost == pytest.approx(len(candidates) * each), name
    for ask, each in (
        (lambda: numbers(found, candidates), prefix + (10 + 48) * suffix + n_given),
        (lambda: found.gradient(candidates, torch.ones(4, 3)), 3 * (prefix + suffix)),
        (lambda: found.activations(found.bound.tokens(candidates)), prefix),
    ):
        found.cost = 0.0
        ask()
        assert found.cost == pytest.approx(len(candidates) * each)


@pytest.mark.parametrize("hooks", [False, True])
def test_the_model_is_the_same_afterwards(checkpoint, hooks):
    model = load_model(str(checkpoint("gpt2")), dtype="float64")
    model.train()
    weights = {name: each.clone() for name, each in model.state_dict().items()}
    flags = {name: each.requires_grad for name, each in model.named_parameters()}
    assert any(flags.values())
    bound = searched("rules", PAIRS, model.tokenizer)
    with borrow(model):
        found = Evaluator(model, bound, HEAD, hooks=hooks)
        numbers(found, some(bound.space))
        found.first_order_scores(some(bound.space)[0], torch.ones(3))
        found.activations(bound.tokens(some(bound.space)))
        found.activations_of_others(bound.clean)
    assert all(torch.equal(each, weights[name]) for name, each in model.state_dict().items())
    assert {name: each.requires_grad for name, each in model.named_parameters()} == flags
    assert all(each.grad is None for each in model.parameters())
    assert model.training
    assert not any(point.fwd_hooks or point.bwd_hooks for point in model.hook_dict.values())


@pytest.mark.parametrize(("kind", "n_pairs", "hooks", "target"), pairwise([("rules", 3), ("words", 3)]))
def test_the_gradient_is_that_of_finite_differences(small, kind, n_pairs, hooks, target):
    """AP of a candidate whose embeddings are moved, by plain hooks on the whole model, against the gradient there."""
    model = small("gpt2")
    found = evaluated(model, target, kind, n_pairs, hooks=hooks)
    candidates = some(found.bound.space, 2)
    tokens = found.bound.tokens(candidates)
    weights = torch.randn(2, n_pairs, dtype=torch.float64)
    moves = torch.randn(*tokens.shape, model.cfg.d_model, dtype=torch.float64)
    moves[:, :, : found.first] = 0
    hook, embed = hook_name(target.single[0], target.single[1]), "hook_embed"

    def moved(sign, given, candidate, pair):
        step = sign * 1e-5 * moves[given, candidate]
        seen = []
        with torch.no_grad():
            model.run_with_hooks(
                tokens[given, candidate][None],
                fwd_hooks=[(embed, lambda old, hook: old + step), (hook, lambda old, hook: seen.append(old))],
            )

            def patch(old, hook):
                new = old.clone()
                new[:, :, target.single[2]] = seen[0][:, :, target.single[2]]
                return new

            logits = model.run_with_hooks(found.bound.clean[[pair]], fwd_hooks=[(hook, patch)])[0, -1]
        one = found.bound.pairs[pair]
        answer, distractor = (int(model.to_tokens(w, prepend_bos=False)) for w in (one.answer, one.distractor))
        return (logits[answer] - logits[distractor]).item()

    gradient = found.gradient(candidates, weights)
    assert gradient.shape == moves[:, :, found.first :].shape
    for candidate in range(2):
        slope = sum(
            weights[candidate, pair].item()
            * (moved(1, given, candidate, pair) - moved(-1, given, candidate, pair))
            / 2e-5
            for pair in range(n_pairs)
            for given in [0 if found.bound.shared else pair]
        )
        expected = (gradient[:, candidate] * moves[:, candidate, found.first :]).sum().item()
        assert abs(expected) > 1e-3
        assert slope == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("kind", "n_pairs"), KINDS)
@pytest.mark.parametrize("target", [HEAD, NEURON], ids=["head", "neuron"])
def test_in_a_linear_model_gains_are_what_swaps_gain(linear, kind, n_pairs, target):
    found = evaluated(linear, target, kind, n_pairs)
    space = found.bound.space
    weights = torch.linspace(0.5, 2, n_pairs, dtype=torch.float64)
    for anchor in some(space, 2):
        first_order_scores = found.first_order_scores(anchor, weights)
        assert [len(gain) for gain in first_order_scores] == list(space.sizes)
        before = found.effects([anchor])[0] @ weights
        for slot, gain in enumerate(first_order_scores):
            swaps = [(*anchor[:slot], option, *anchor[slot + 1 :]) for option in range(space.sizes[slot])]
            change = found.effects(swaps) @ weights - before
            torch.testing.assert_close(gain, change, atol=1e-8, rtol=1e-6)
        assert max(gain.abs().max() for gain in first_order_scores) > 1e-4


def test_the_best_swaps_by_gain_are_far_better_than_random_ones(ioi_mini):
    """Of all one-word swaps of random prompts, 8 with the highest gains are nearly as good as the best."""
    pairs = generate_clean_prompts(ABBA, TEMPLATE, 2, 0, ioi_mini.tokenizer)
    bound = bind_template(
        template_space(TEMPLATE, SLOTS, ABBA, ioi_mini.tokenizer, prepend_bos=True),
        pairs,
        ioi_mini.tokenizer,
        prepend_bos=True,
    )
    rng = np.random.default_rng(0)
    shares = []
    with borrow(ioi_mini):
        for layer, head in ((1, 3), (2, 5), (3, 1)):
            found = Evaluator(ioi_mini, bound, Target((("heads", layer, head),)))
            anchor = tuple(int(rng.integers(size)) for size in bound.space.sizes)
            first_order_scores = np.concatenate(
                [gain.numpy() for gain in found.first_order_scores(anchor, torch.full((2,), 0.5))]
            )
            swaps = [
                (*anchor[:slot], option, *anchor[slot + 1 :])
                for slot, size in enumerate(bound.space.sizes)
                for option in range(size)
            ]
            effects = found.effects(swaps).mean(1).numpy() - found.effects([anchor]).mean().item()
            by_chance = np.mean([effects[rng.permutation(len(swaps))[:8]].max() for _ in range(100)])
            shares.append((effects.max(), effects[np.argsort(-first_order_scores)[:8]].max(), by_chance))
    best, by_gain, by_chance = np.sum(shares, axis=0)
    assert by_gain > 0.85 * best
    assert by_chance < 0.5 * best


def test_hand_made_prompts_that_differ_before_every_slot_are_evaluated_from_there(small):
    model = small("gpt2")
    space = template_space(
        TEMPLATE,
        {name: ["=keep"] for name in SLOTS} | {"object": ["=keep", "gave it to"]},
        ABBA,
        model.tokenizer,
        prepend_bos=True,
    )
    bound = bind_template(space, [ABBA], model.tokenizer, prepend_bos=True)
    with borrow(model):
        found = Evaluator(model, bound, HEAD)
        tokens = torch.cat([model.to_tokens(ABBA.corrupted)[None], bound.tokens([(1,)])], 1)
        ap = found.numbers(tokens, ["ap"])["ap"][:, 0]
    expected = [activation_patching(model, pair).effect[1, 2] for pair in (ABBA, next(as_pairs(bound, (1,))))]
    close(ap, torch.stack(expected))


@pytest.mark.parametrize("target", [HEAD, NEURON], ids=["head", "neuron"])
@pytest.mark.parametrize("kind", ["rules", "words"])
def test_activations_are_those_of_the_corrupted_runs(small, kind, target):
    model = small("gpt2")
    found = evaluated(model, target, kind, batch_size=2)
    candidates = some(found.bound.space, 5)
    tokens = found.bound.tokens(candidates)
    runs = model.run_with_cache(tokens.flatten(0, 1))[1][hook_name(target.single[0], target.single[1])].detach()
    expected = runs[:, found.first :, target.single[2]].unflatten(0, tokens.shape[:2])
    close(found.activations(tokens), expected)
    others = model.to_tokens([text.replace("After", "Then") for text in found.bound.texts(candidates[0])])
    runs = model.run_with_cache(others)[1][hook_name(target.single[0], target.single[1])].detach()
    close(found.activations_of_others(others), runs[:, found.first :, target.single[2]], atol=1e-12)


def test_float32_differs_by_rounding(checkpoint, small):
    float32 = load_model(str(checkpoint("gpt2")))
    found, exact = (evaluated(model, HEAD) for model in (float32, small("gpt2")))
    candidates = some(found.bound.space, 4)
    for name, values in numbers(found, candidates).items():
        assert values.dtype == torch.float32
        torch.testing.assert_close(values.double(), numbers(exact, candidates, [name])[name], atol=1e-4, rtol=0)


def test_a_model_with_many_words_costs_its_embeddings_no_copy(tmp_path):
    """Gains are products with the words that slots offer, once each, whatever the vocabulary."""
    save_checkpoint("gpt2", 2, tmp_path)
    model = load_model(str(tmp_path), dtype="float64")
    found = evaluated(model, Target((("heads", 1, 0),)), "rules", 2)
    first_order_scores = functools.partial(found.first_order_scores, some(found.bound.space)[0])
    one, other = first_order_scores(torch.tensor([1.0, 0.0])), first_order_scores(torch.tensor([0.0, 1.0]))
    for left, right, both in zip(one, other, first_order_scores(torch.tensor([1.0, 1.0])), strict=True):
        torch.testing.assert_close(left + right, both, atol=1e-12, rtol=0)


def test_a_head_of_a_mixture_of_experts_can_be_searched(tmp_path):
    """It has no neurons to record, and its heads need none."""
    save(FAMILIES["Mixtral (experts)"], tmp_path)
    model = load_model(str(tmp_path), processing="raw")
    found = evaluated(model, HEAD)
    assert list(found.clean.activations) == ["heads"]
    candidates = some(found.bound.space)

    def ap(pair):
        return activation_patching(model, pair, "heads").effect[HEAD.single[1], HEAD.single[2]].item()

    close(found.effects(candidates).double(), table(found.bound, candidates, ap), atol=1e-5)


def test_a_model_that_does_more_with_embeddings_than_look_them_up_is_refused(small):
    """BLOOM norms them."""
    with pytest.raises(InputError, match=r"whose tokens' embeddings are more than rows of a table, wanted a model of"):
        evaluated(small("bloom", "raw"), HEAD)


def test_prompts_of_two_lengths_are_refused_whatever_aligns_them_in_a_run(small):
    pair = replace(ABBA, corrupted=ABBA.corrupted.replace("a bottle", "bottle"), align="end")
    with pytest.raises(InputError) as error:
        search(small("gpt2"), pair, "1.2", clean_n=1, heldout_n=0)
    assert str(error.value) == (
        "prompts.corrupted: got 15 tokens, prompts.clean has 16 (without the token before every prompt); a search "
        "needs prompts of one length. Reword one of them."
    )
