"""Answers of several tokens: their summed log-probabilities, teacher-forced, against models that igap did not make."""

import itertools
from dataclasses import replace

import captum.attr
import pytest
import torch
from helpers.by_hand import ForcedByHand
from helpers.checkpoints import save_checkpoint
from helpers.plain import Plain
from transformers import AutoModelForCausalLM

from igap import (
    Baseline,
    InputError,
    PromptPair,
    activation_patching,
    attribution_patching,
    integrated_gradients,
    load_model,
)
from igap.analyses.direct_effect.effects import direct_effect
from igap.attribution.activation_patching import patch_components
from igap.attribution.attribution_patching import estimate_patches
from igap.attribution.integrated_gradients import integrate_path
from igap.components import PLACES, hook_name
from igap.engine.baselines import Request, reference_tokens
from igap.engine.open_pairs import contrast, open_pairs
from igap.inputs.prompts import tokenize
from igap.storage.cache import ResultCache, use_cache

EXACT, CAPTUM = 1e-10, 1e-7
PAIR = PromptPair(
    "After John and Mary gave Mary a", "After Tom and Mary gave John a", " bottle of milk", " cat dog", min_gap=0.0
)
SAME_PASS = PromptPair(
    "Then Anna and Tom gave Tom a", "Then John and Tom gave Anna a", " cat and dog", " milk", min_gap=0.0
)
CASES = {
    "gpt2": ("gpt2", {"n_inner": 12}),
    "grouped": ("llama", {"intermediate_size": 12, "num_key_value_heads": 2}),
    "parallel": ("gpt_neox", {"intermediate_size": 12}),
}


pytestmark = pytest.mark.usefixtures("whole_in_float64")


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A model of igap, the same weights on plain modules, and the sites that it has."""
    folder = tmp_path_factory.mktemp(request.param)
    architecture, settings = CASES[request.param]
    save_checkpoint(architecture, 2, folder, **settings)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval().requires_grad_(False)
    sites = tuple(site for site in PLACES if (site, request.param) != ("resid_mid", "parallel"))
    return load_model(str(folder), processing="raw", dtype="float64"), plain, sites


def ids(model, text):
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def by_hand(plain, tokens):
    return ForcedByHand(plain, [*tokens.forced, *tokens.answers])


class Forced(Plain):
    """F of a plain model: log-softmax at each position that a token of the answer follows."""

    def f(self, run="clean", n_rows=1):
        prompt = self.tokens[run]
        whole = torch.cat([prompt, torch.tensor([self.answer[:-1]])], 1).expand(n_rows, -1)
        logprobs = self.model(whole).logits.log_softmax(-1)
        before = prompt.shape[1] - 1
        return sum(logprobs[:, before + i, token] for i, token in enumerate(self.answer))


@pytest.mark.parametrize("route", ["suffix", "hooks"])
def test_f_and_patching_are_those_of_the_plain_model(case, route):
    model, plain, _ = case
    prompts = [torch.tensor([[0, *ids(model, text)]]) for text in (PAIR.clean, PAIR.corrupted)]
    if not model.cfg.default_prepend_bos:
        prompts = [prompt[:, 1:] for prompt in prompts]
    slow = Forced(plain, *prompts, ids(model, PAIR.answer), None)
    for site in ("heads", "neurons"):
        with contrast(model, PAIR, sites=(site,), metric="logprob", route=route) as question:
            for run, ours in (("clean", question.clean), ("corrupted", question.corrupted)):
                assert float(question.value(ours)) == pytest.approx(float(slow.f(run)), abs=EXACT)
            (found,), (ig,) = patch_components(question, site), integrate_path(question, site, n_steps=6)
        patching, gradients = slow.effects(site, 6)
        torch.testing.assert_close(found.effect, patching, rtol=0, atol=EXACT)
        torch.testing.assert_close(ig.effect, gradients, rtol=0, atol=CAPTUM)
        assert patching.abs().max() > 1e-3


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_every_site_and_position_is_the_model_by_hand(case, direction):
    """Of two answers that share a pass, at the positions of the prompt and of the answer."""
    model, plain, sites = case
    with open_pairs(model, [PAIR, SAME_PASS], sites=sites, metric="logprob") as opened:
        ((_, question),) = opened.contrasts(direction=direction)
        assert question.backend.route == "suffix"
        hands = [by_hand(plain, tokens) for tokens in question.pairs]
        runs = [(tokens.clean, tokens.corrupted)[:: 1 if direction == "noising" else -1] for tokens in question.pairs]
        ends_of = [hand.read(there) for hand, (_, there) in zip(hands, runs, strict=True)]
        slopes = [hand.first_orders(here, ends) for hand, (here, _), ends in zip(hands, runs, ends_of, strict=True)]
        for row, site in zip(itertools.cycle((0, 1)), sites, strict=False):  # of every other site one answer
            ap = patch_components(question, site, positions="each")[row]
            atp = estimate_patches(question, site, positions="each")[row]
            ig = integrate_path(question, site, positions="each", n_steps=4)[row]
            hand, (here, _), ends = hands[row], runs[row], ends_of[row]
            spans = [*([i] for i in range(here.shape[1])), range(here.shape[1])]
            for layer in range(2):
                end = ends[site, layer]
                patched = hand.patched(here, site, layer, end, spans)
                torch.testing.assert_close(ap.effect[layer], patched[:-1], rtol=0, atol=EXACT)
                torch.testing.assert_close(ap.together[layer], patched[-1], rtol=0, atol=EXACT)
                torch.testing.assert_close(atp.effect[layer], slopes[row][site, layer], rtol=0, atol=EXACT)
                integrals = hand.integrated(here, site, layer, end, 4)
                torch.testing.assert_close(ig.effect[layer], integrals, rtol=CAPTUM, atol=CAPTUM)
                assert patched[-1].abs().max() > 1e-5
            appended = ap.effect[:, -2:]
            assert appended.abs().max() > 1e-5 or site in ("q",)


def test_ig_is_captums_and_complete(case):
    model, _, sites = case
    tokens = tokenize(model, PAIR, several=True)
    answer = [*tokens.forced, tokens.answer]

    def f(rows):
        logprobs = model(rows)[:, -3:].log_softmax(-1)
        return sum(logprobs[:, i, token] for i, token in enumerate(answer))

    with contrast(model, PAIR, sites=sites, metric="logprob") as question:
        for site in set(sites) - {"resid_mid"}:  # where the bridge's hook is not on the stream
            (ours,) = integrate_path(question, site, n_steps=6, positions="each")
            for layer in range(2):
                method = captum.attr.LayerIntegratedGradients(f, model.hook_dict[hook_name(site, layer)])
                theirs = method.attribute(tokens.clean, tokens.corrupted, n_steps=6)[0]
                theirs = theirs.flatten(1).unflatten(1, (ours.effect.shape[2], -1)).sum(-1)
                torch.testing.assert_close(ours.effect[layer], -theirs, rtol=0, atol=CAPTUM)
            for n_steps in (64, "auto") if site == "heads" else ("auto",):
                (ig,) = integrate_path(question, site, n_steps=n_steps)
                assert (ig.delta.abs() <= 1e-3 * ig.layer_effect.abs() + 1e-12).all()


def test_routes_agree_where_several_layers_change_and_where_only_paths_to_the_logits_do(case):
    model, _, _ = case
    values = {}
    for route in ("suffix", "hooks"):
        with contrast(model, PAIR, metric="logprob", route=route) as question, torch.no_grad():
            ends = {place: question.ends(*place)[1] for place in (("heads", 0), ("neurons", 1))}
            changes = {
                place: lambda rows, end=end: end[:, None, -rows.shape[2] :].expand_as(rows)
                for place, end in ends.items()
            }
            values[route] = question.engine.with_changes(changes, 2)
            assert (values[route] - question.value(question.clean)[:, None]).abs().min() > 1e-3
    torch.testing.assert_close(*values.values(), rtol=0, atol=EXACT)
    # Nothing reads the last MLP but the logits.
    found = direct_effect(model, PAIR, "neurons", metric="logprob")
    torch.testing.assert_close(found.direct.effect[-1], found.total.effect[-1], rtol=0, atol=EXACT)
    assert found.direct.effect[-1].abs().max() > 1e-3


def test_other_runs_that_activations_move_to_end_in_the_answer_as_well(small, pair):
    """Of the embedded model, whose tokenizer has the words of the generated prompts."""
    from igap.models.load import find_checkpoint

    model = small("ioi-mini", "raw")
    plain = AutoModelForCausalLM.from_pretrained(find_checkpoint("ioi-mini"), dtype=torch.float64).eval()
    pairs = [replace(pair, answer=" John and Mary"), replace(pair, answer=" Mary and John", distractor=" John")]
    text = "After Anna and Tom went to the store, Anna gave a bottle of milk to"
    for baseline in (Baseline("mean", n=2), Baseline("prompt", prompt=text)):
        with open_pairs(model, pairs, sites=("heads",), metric="logprob") as opened:
            ((_, question),) = opened.contrasts(baseline)
            request = Request(model, question.pairs, question.clean, question.corrupted.activations, baseline)
            if baseline.kind == "mean":
                prompts = reference_tokens(request)
            else:
                prompts = [tokenize(model, replace(pair, clean=text)).clean]
            found = patch_components(question, "heads")
            for row, tokens in enumerate(question.pairs):
                assert all(prompt.shape[1] == tokens.n_prompt for prompt in prompts)
                hand = by_hand(plain.requires_grad_(False), tokens)
                runs = [hand.read(torch.cat([each, torch.tensor([tokens.forced])], 1)) for each in prompts]
                for layer in (0, 3):
                    end = torch.stack([run["heads", layer] for run in runs]).mean(0)
                    expected = hand.patched(tokens.clean, "heads", layer, end, [range(tokens.clean.shape[1])])
                    torch.testing.assert_close(found[row].effect[layer], expected[0], rtol=0, atol=EXACT)


def test_pairs_with_answers_of_other_lengths_stand_beside_each_other(small):
    model = small("gpt2")
    inside = replace(PAIR, clean=PAIR.clean + " bottle of", corrupted=PAIR.corrupted + " bottle of", answer=" milk")
    other = replace(PAIR, answer=" cat dog", distractor=" milk")
    pairs = [PAIR, replace(PAIR, answer=" milk"), inside, other, SAME_PASS]
    for make in (activation_patching, integrated_gradients, attribution_patching):
        together = make(model, pairs, metric="logprob")
        for each, alone in zip(together.pairs, pairs, strict=True):
            torch.testing.assert_close(each.effect, make(model, alone, metric="logprob").effect, rtol=0, atol=1e-9)
    with pytest.raises(
        InputError, match=r"^positions: got each with pairs of answers|^positions: got each with pairs of"
    ):
        activation_patching(model, pairs, metric="logprob", positions="each")


def test_a_function_of_ones_own_sees_the_logits_that_each_token_follows(small):
    model, shapes = small("gpt2"), set()

    def same(logits, pair):
        shapes.add(tuple(logits.shape[1:]))
        logprobs = logits.log_softmax(-1)
        return sum(logprobs[:, i, token] for i, token in enumerate([*pair.forced, pair.answer]))

    for make in (activation_patching, integrated_gradients):
        own, built_in = (make(model, PAIR, metric=metric) for metric in (same, "logprob"))
        torch.testing.assert_close(own.effect, built_in.effect, rtol=0, atol=1e-12)
    assert shapes == {(3, model.cfg.d_vocab)}
    with pytest.raises(
        InputError, match=r"^metric: got a function that gives \[2, 3\] for 2 rows, wanted .*token, vocab"
    ):
        activation_patching(model, PAIR, metric=lambda logits, pair: logits.sum(-1))


def test_spans_are_of_the_prompt_or_of_the_tokens_that_follow_it(small):
    model = small("gpt2")
    each = activation_patching(model, PAIR, metric="logprob", positions="each")
    assert [name.split()[1] for name in each.spans[-3:]] == ["a", "+bottle", "+of"]
    n = len(each.spans)
    last = activation_patching(model, PAIR, metric="logprob", positions="last")
    assert last.where == ((n - 3,),)
    torch.testing.assert_close(last.effect, each.effect[:, n - 3], rtol=0, atol=1e-12)
    word = activation_patching(model, PAIR, metric="logprob", positions={"of": "+of"})
    torch.testing.assert_close(word.effect[:, 0], each.effect[:, n - 1], rtol=0, atol=1e-12)


REFUSED = {
    r"^prompts\.answer: got ' bottle of milk', which is 3 tokens \[[^\n]*metric=logprob[^\n]*$": (PAIR, {}),
    r"^prompts\.answer: got ' bottle of milk', which is 3 tokens \[[^\n]*metric=logprob": (
        PAIR,
        {"metric": "prob_diff"},
    ),
    r"^prompts\.distractor: got ' cat dog', which is 2 tokens \[[^\n]*metric=logprob": (replace(PAIR, answer=" a"), {}),
    r"^prompts\.answer: got a set with ' cat dog', which is 2 tokens, wanted sets of single tokens[^\n]*$": (
        replace(PAIR, answer=(" milk", " cat dog"), distractor=" a"),
        {"metric": "logprob"},
    ),
    r"^prompts\.distractor: got a set with ' cat dog'": (
        replace(PAIR, distractor=(" cat dog", " a")),
        {"metric": "logprob"},
    ),
    r"^prompts\.distractor: got ' bottle of  milk', the same token as prompts\.answer": (
        replace(PAIR, distractor=" bottle of  milk"),
        {"metric": "logprob"},
    ),
    r"^prompts\.answer: got '[^\n]*', all of which but its last token follows the prompt, 3\d tokens together[^\n]*$": (
        replace(PAIR, answer=" milk cat" * 12),
        {"metric": "logprob"},
    ),
    r"^positions: got roles with an answer or distractor of several tokens[^\n]*$": (
        PAIR,
        {"metric": "logprob", "positions": "roles"},
    ),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(small, said):
    pair, settings = REFUSED[said]
    with pytest.raises(InputError, match=said):
        activation_patching(small("gpt2"), pair, **settings)


def test_the_identity_of_a_single_token_stays_and_that_of_several_is_its_own(small):
    model = small("gpt2")
    single = tokenize(model, replace(PAIR, answer=" milk", distractor=" a"), several=True)
    assert set(single.identity) == {"clean", "corrupted", "partners", "answer", "distractor"}
    assert single.identity == tokenize(model, replace(PAIR, answer=" milk", distractor=" a")).identity
    inside = replace(PAIR, clean=PAIR.clean + " bottle of", corrupted=PAIR.corrupted + " bottle of", answer=" milk")
    whole, last = (tokenize(model, each, several=True) for each in (PAIR, inside))
    assert torch.equal(whole.clean, last.clean)
    assert whole.answer == last.answer
    assert whole.identity != last.identity


def test_the_cache_keeps_prompts_that_end_in_an_answer_apart(small, tmp_path):
    model, answer = small("gpt2"), " bottle of milk"
    inside = replace(PAIR, clean=PAIR.clean + " bottle of", corrupted=PAIR.corrupted + " bottle of", answer=" milk")
    pairs = [inside, PAIR, replace(PAIR, answer=answer)]
    alone = [activation_patching(model, pair, metric="logprob") for pair in pairs]
    with use_cache(ResultCache(tmp_path, {})):
        kept = [activation_patching(model, pair, metric="logprob") for pair in pairs]
    assert [each.gap for each in kept] == [each.gap for each in alone]
    assert len({each.gap for each in kept}) == 2
