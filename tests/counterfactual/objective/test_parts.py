"""Clean prompts that do not share passes: of several lengths, of answers of several tokens, too many for the memory."""

import itertools
from dataclasses import replace

import pytest
import torch
from helpers.searched import PAIRS, searched

from igap import InputError, activation_patching
from igap.counterfactual.objective.evaluator import Evaluator
from igap.counterfactual.objective.parts import PartedEvaluator, make_evaluator
from igap.counterfactual.objective.patch import Patch, check_reaches, resolve
from igap.counterfactual.spaces.mixed import PAD
from igap.counterfactual.spaces.prepare import prepare
from igap.counterfactual.target import Target, locate_target
from igap.engine.activations import block_numbers, borrow
from igap.inputs.prompts import tokenize
from igap.models.families import widths_of_model

HEAD = Target((("heads", 1, 2),))
SHORT = [replace(pair, clean=one, corrupted=other) for pair in PAIRS for one, other in [
    [text.replace("bottle of milk", "cat") for text in (pair.clean, pair.corrupted)]
]]  # fmt: skip
MIXED = [PAIRS[0], SHORT[1], PAIRS[2], SHORT[0]]
SLOTS = {
    "first": ("=keep", "=N2", "John"),
    "subject": ("=keep", "=other", "Tom"),
    "object": ("=keep", "dog", "bottle of milk"),
    **dict.fromkeys(("second", "place", "verb"), ("=keep",)),
}


def mixed(model, pairs=MIXED, **options):
    """The space of pairs of any length, bound to them in an order of the seed."""
    options = {"space": SLOTS, "lengths": "any", "clean_n": len(pairs), "heldout_n": 0, **options}
    prepared = prepare(list(pairs), model.tokenizer, prepend_bos=True, **options)
    return prepared, prepared.bind(prepared.pairs)


def table(bound, candidates, number):
    """`[candidate, pair]` of a number of pairs; 0 where the candidate is the clean prompt."""
    rows = []
    for candidate in candidates:
        texts = zip(bound.pairs, bound.texts(candidate), strict=True)
        rows.append([0.0 if text == pair.clean else number(replace(pair, corrupted=text)) for pair, text in texts])
    return torch.tensor(rows, dtype=torch.float64)


def same(found, expected, atol=1e-10):
    assert expected.abs().max() > 1e-4, "there is something to compare"
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


def test_effects_with_several_lengths_are_those_of_each_pair_patched_alone(small):
    model = small("gpt2")
    prepared, bound = mixed(model)
    slots = {slot.name: slot.options for slot in prepared.space.slots}
    assert slots == {"first": SLOTS["first"], "subject": SLOTS["subject"]}, "no word is as long as both objects"
    assert prepared.space.left_out["object: not as many tokens as in all clean prompts"] == 2
    candidates = list(prepared.space.candidates())[1:]
    tokens = bound.tokens(candidates)
    lengths = [len(model.tokenizer(pair.clean)["input_ids"]) for pair in bound.pairs]
    assert sorted(lengths) == [15, 15, 17, 17]
    for rows, length, i in zip(tokens, lengths, itertools.count()):
        assert (rows[:, length:] == PAD).all()
        texts = [bound.texts(candidate)[i] for candidate in candidates]
        assert [row[:length].tolist() for row in rows] == [model.tokenizer(text)["input_ids"] for text in texts]
    for name, positions in (("1.2", "all"), ("0.1@last", "last"), ("0.3@S2", "roles")):
        target = locate_target(name, 2, widths_of_model(model))
        site, layer, head = target.single
        with borrow(model):
            found = make_evaluator(model, bound, target)
        assert isinstance(found, PartedEvaluator)

        def ap(pair, site=site, layer=layer, head=head, positions=positions):
            made = activation_patching(model, pair, site, positions=positions)
            return made.effect[layer][..., head].flatten()[3 if positions == "roles" else 0].item()

        same(found.effects(candidates[::3]), table(bound, candidates[::3], ap))

    edits = bound.count_edits(tokens)
    assert edits[0].tolist() == [1, 1, 1, 1], "the first candidate changes the subject alone"
    assert bound.changed_slots(candidates[0]) == (1,)
    assert [bound.offers_clean(slot) for slot in (0, 1)] == [True, True]


def test_each_number_of_several_lengths_is_that_of_an_evaluator_of_one_prompt(small):
    model = small("gpt2")
    prepared, bound = mixed(model)
    candidates = list(prepared.space.candidates())[1:]
    names = ("ap", "ig", "curve", "fluency", "corrupted", "mean_other_heads")
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    with borrow(model):
        found = make_evaluator(model, bound, HEAD)
        alone = [Evaluator(model, prepared.bind([pair]), HEAD) for pair in bound.pairs]
        numbers = found.numbers(bound.tokens(candidates), names)
        scores, fluency = found.first_order_scores(candidates[3], weights), found.fluency_scores(candidates[3])
        errors = found.estimates(bound.tokens(candidates), "atp")
        one = [each.numbers(each.bound.tokens(candidates), names) for each in alone]
        for name in names:
            same(numbers[name], torch.cat([each[name] for each in one], 1))
        same(errors, torch.cat([each.estimates(each.bound.tokens(candidates), "atp") for each in alone], 1))
        each = [own.first_order_scores(candidates[3], weight[None]) for own, weight in zip(alone, weights, strict=True)]
        for slot, score in enumerate(scores):
            same(score, sum(own[slot] for own in each))
        each = [own.fluency_scores(candidates[3]) for own in alone]
        for slot, score in enumerate(fluency):
            same(score, sum(own[slot] for own in each) / 4)


def test_answers_of_several_tokens_are_read_as_a_run_reads_them(small):
    """Of one, two and three tokens side by side; fluency is the prompt's, without the answer."""
    model = small("gpt2")
    answers = (" John and Mary", " John", " Mary gave", " John and Mary")
    pairs = [replace(pair, answer=answer, distractor=" cat dog") for pair, answer in zip(MIXED, answers, strict=True)]
    prepared, bound = mixed(model, pairs, several=True)
    assert len(bound.groups) == 4
    candidates = list(prepared.space.candidates())[1:5]
    with borrow(model):
        found = make_evaluator(model, bound, HEAD, metric="logprob")
        numbers = found.numbers(bound.tokens(candidates), ["ap", "fluency"])

    def ap(pair):
        return activation_patching(model, pair, metric="logprob").effect[1, 2].item()

    same(numbers["ap"], table(bound, candidates, ap))

    def words(text):
        ids = model.to_tokens(text, prepend_bos=True)
        with torch.no_grad():
            logprobs = model(ids)[0, :-1].log_softmax(-1)
        return logprobs.gather(-1, ids[0, 1:, None]).mean().item()

    same(numbers["fluency"], table(bound, candidates, lambda pair: words(pair.corrupted) - words(pair.clean)))


def test_answer_sets_are_read_as_a_run_reads_them(small):
    model = small("gpt2")
    pairs = [replace(pair, answer=(pair.answer, " dog"), distractor=(pair.distractor, " cat")) for pair in MIXED]
    prepared, bound = mixed(model, pairs)
    candidates = list(prepared.space.candidates())[1:5]
    for metric in ("logit_diff", "prob_diff"):
        with borrow(model):
            found = make_evaluator(model, bound, HEAD, metric=metric).effects(candidates)

        def ap(pair, metric=metric):
            return activation_patching(model, pair, metric=metric).effect[1, 2].item()

        same(found, table(bound, candidates, ap))
    with pytest.raises(InputError, match=r"but search\.space\.slots\.first offers =IO, which needs one answer and one"):
        mixed(model, pairs, space={**SLOTS, "first": ("=keep", "=IO")})


def test_no_pass_has_more_prompts_than_the_memory_holds(small, monkeypatch):
    """A gradient has a row of every clean prompt: they are cut into parts, whose passes are counted here."""
    model, rows = small("gpt2"), list[int]()
    value = Patch.value

    def counted(patch, moved, mask):
        rows.append(moved.shape[0] * moved.shape[1])
        return value(patch, moved, mask)

    monkeypatch.setattr(Patch, "value", counted)
    every = [replace(pair, clean=one, corrupted=other) for pair in PAIRS for place in ("store", "milk", "dog") for
             one, other in [[text.replace("store", place) for text in (pair.clean, pair.corrupted)]]]  # fmt: skip
    for kind in ("rules", "words"):
        bound = searched(kind, tuple(every), model.tokenizer)
        assert bound.shared == (kind == "words")
        candidates = list(itertools.islice(bound.space.candidates(), 1, None, bound.space.size // 4))[:4]
        weights = torch.arange(len(every)).double() - 2.5
        with borrow(model):
            whole = Evaluator(model, bound, HEAD)
            n_bytes = 8 * model.cfg.n_layers * block_numbers(model) * (bound.clean.shape[1] - bound.first)
            parted = make_evaluator(model, bound, HEAD, memory_gib=4.5 * n_bytes / 2**30)
            assert isinstance(parted, PartedEvaluator)
            rows.clear()
            scores = parted.first_order_scores(candidates[2], weights)
            assert rows == [4, 4, 1], "a gradient's passes"
            found = parted.effects(candidates)
            for mine, other in zip(scores, whole.first_order_scores(candidates[2], weights), strict=True):
                same(mine, other)
            same(found, whole.effects(candidates))
            few = Evaluator(model, bound, HEAD, batch_size=2 * len(every))
            rows.clear()
            made = few.gradient(candidates, weights.expand(4, -1))
            assert rows == [2 * len(every)] * 2
            same(made, whole.gradient(candidates, weights.expand(4, -1)))


def test_a_position_by_its_number_is_refused_where_other_words_stand_there(small):
    model = small("gpt2")
    _, bound = mixed(model)
    target = resolve(locate_target("1.2@4", 2, widths_of_model(model)), tokenize(model, bound.pairs[0]))
    with pytest.raises(InputError, match=r"^head: got 1\.2@4, positions of the first clean .* clean\.lengths=one\.$"):
        check_reaches(target, bound, lambda pair: tokenize(model, pair), 2)
    check_reaches(locate_target("1.2@last", 2, widths_of_model(model)), bound, lambda pair: tokenize(model, pair), 2)
