"""Effects with shared beginnings: against one run a candidate, and against hooks in the whole model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.families import FAMILIES, save
from helpers.searched import PAIRS, searched
from helpers.small_searches import SPACE, WORDS, opened

from igap import load_model
from igap.counterfactual.objective.evaluator import Evaluator
from igap.counterfactual.objective.patch import resolve
from igap.counterfactual.target import locate_target
from igap.engine.activations import borrow
from igap.engine.batching import AdaptiveBatch
from igap.engine.prefix_tree import PrefixTree, sort_prompts
from igap.inputs.prompts import tokenize
from igap.models.families import widths_of_model

NAMES = ["ap", "curve"]
TARGETS = [
    "1.2", "L0.N5", "2.3", "0.1@END", "2.1@last", "1.2@S2", "0.1+1.2+L1.N5@S2", "0.1+L0.N5+2.3@diff", "1.2@diff",
    "1.2@13-15", "L1.resid_pre@S2", "L1.resid_post", "L2.attn_out@END", "1.2.q@S2", "2.1.q", "2.0.k", "0.1.k@S2",
    "L2.N4",
]  # fmt: skip


def evaluators(model, name, kind, n_pairs, metric):
    """The evaluator and the one that takes the whole model with hooks, of one target."""
    bound = searched(kind, PAIRS[:n_pairs], model.tokenizer, bos=bool(model.cfg.default_prepend_bos))
    target = resolve(locate_target(name, model.cfg.n_layers, widths_of_model(model)), tokenize(model, bound.pairs[0]))
    with borrow(model):
        return [Evaluator(model, bound, target, hooks=hooks, metric=metric) for hooks in (False, True)]


def check(model, name, kind="rules", n_pairs=3, least=1e-5, rounding=1e-11, metric="logit_diff"):
    ours, hooks = evaluators(model, name, kind, n_pairs, metric)
    assert ours.route == "suffix"
    every = list(ours.bound.space.candidates())
    drawn = [every[i] for i in np.random.default_rng(0).permutation(len(every))[:30]]
    tokens = ours.bound.tokens(drawn)
    with borrow(model):
        made = ours.numbers(tokens, NAMES, merge=True)
        plain = ours.numbers(tokens, NAMES)
        slow = hooks.numbers(tokens[:, :2], NAMES)
    for number in NAMES:
        assert plain[number].abs().max() > least, "there is something to compare"
        torch.testing.assert_close(made[number], plain[number], atol=rounding, rtol=0)
        torch.testing.assert_close(made[number][:2], slow[number], atol=10 * rounding, rtol=0)


@pytest.mark.parametrize("name", TARGETS)
def test_shared_beginnings_give_what_each_candidate_s_own_run_gives(small, name):
    check(small("gpt2"), name)


@pytest.mark.parametrize(("kind", "n_pairs"), [("words", 3), ("substitute", 2), ("prompts", 3), ("rules", 1)])
def test_they_do_in_every_kind_of_space(small, kind, n_pairs):
    check(small("gpt2"), "1.2", kind, n_pairs)


def test_they_do_on_a_metric_of_all_logits(small):
    check(small("gpt2"), "1.2", metric="kl")


@pytest.mark.parametrize("family", ["Mistral", "Gemma 2", "GPT-NeoX", "OPT"])
def test_they_do_with_rotary_positions_windows_groups_of_heads_and_caps(tmp_path, family):
    save(FAMILIES[family], tmp_path)
    model = load_model(str(tmp_path), processing="raw", dtype="float64")
    for name in ("1.2", "1.1.k@S2"):
        # These models take their softmax in float32, over keys in another order here.
        check(model, name, n_pairs=2, least=1e-2, rounding=2e-6)


def test_a_tree_has_a_node_for_each_beginning():
    prompts = torch.tensor([[9, 1, 2, 3], [9, 1, 2, 4], [9, 2, 2, 3], [9, 1, 5, 3], [9, 1, 2, 4]])
    own, where = sort_prompts(prompts, 1)
    assert own.tolist() == torch.unique(prompts, dim=0).tolist()
    assert torch.equal(own[where], prompts)
    tree = PrefixTree.of(own[:, 1:], 1)
    beginnings = [len({tuple(prompt[: n + 1]) for prompt in prompts.tolist()}) for n in (1, 2, 3)]
    assert tree.counts == beginnings == [2, 3, 4]
    assert tree.of_nodes(own[:, 1:]).tolist() == [1, 2, 2, 5, 2, 3, 4, 3, 3]


def test_a_whole_space_takes_fewer_passes_and_any_memory_gives_the_same(small, pair, monkeypatch):
    model = small("gpt2")
    with borrow(model):
        some = {**SPACE, **dict.fromkeys(("first", "second", "subject"), WORDS[:6])}
        search = opened(model, pair, head="1.2", clean_n=2, space=some)
        evaluator, tokens = search.cached.evaluator, search.bound.tokens(list(search.space.candidates()))
        before = evaluator.cost
        plain = evaluator.numbers(tokens, ["ap"])["ap"]
        middle = evaluator.cost
        shared = evaluator.numbers(tokens, ["ap"], merge=True)["ap"]
        assert evaluator.cost - middle < 0.5 * (middle - before)
        monkeypatch.setattr(evaluator, "_passes", replace(evaluator._passes, nodes=AdaptiveBatch(40)))
        small_passes = evaluator.numbers(tokens, ["ap"], merge=True)["ap"]
    torch.testing.assert_close(shared, plain, atol=1e-11, rtol=0)
    torch.testing.assert_close(small_passes, plain, atol=1e-11, rtol=0)


def test_what_the_target_never_sees_is_not_computed(small, pair):
    model = small("gpt2")
    with borrow(model):
        search = opened(model, pair, head="0.2.k@S2", clean_n=1)
        evaluator = search.cached.evaluator
        every = list(search.space.candidates())
        made = evaluator.effects(every)
        before = evaluator.cost
        evaluator.numbers(search.bound.tokens(every), ["ap"], merge=True)
    subject = search.space.sizes[2]
    assert len(made[:, 0].round(decimals=12).unique()) <= subject
    assert evaluator.cost - before < 4 * subject
