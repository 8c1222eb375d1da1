"""Every number of a search's validation, computed once more from the prompts' texts alone."""

import functools
import itertools
from types import SimpleNamespace
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from helpers.reference import HOOKS
from helpers.small_searches import opened

import igap
from igap import PromptPair, activation_patching
from igap.counterfactual import search as search_module
from igap.counterfactual.config import Constraints, SpaceConfig
from igap.counterfactual.history import Proposal
from igap.counterfactual.output.flatten import flatten, tables
from igap.counterfactual.search import SearchResult
from igap.counterfactual.spaces.prepare import prepare
from igap.counterfactual.target import Target
from igap.counterfactual.trials.study import EvaluatedTrial
from igap.counterfactual.validation import neighbours, pair_effects, validate
from igap.counterfactual.validation.importance import variance_shares
from igap.counterfactual.validation.pair_effects import delete, measure_pairs
from igap.counterfactual.validation.results import PrunedPrompt
from igap.engine.activations import borrow
from igap.engine.baselines import Baseline
from igap.engine.open_pairs import open_pairs
from igap.errors import InputError
from igap.errors.missing import Missing
from igap.models.load import EMBEDDED
from igap.statistics.bootstrap import mean_intervals

SPACE = {
    "first": ["=keep", "=N2", "Tom"],
    "second": ["=keep", "=N1", "Tom", "Anna", "Paul", "Mark"],
    "subject": ["=keep", "=IO", "Anna"],
    "place": ["=keep"],
    "verb": ["=keep"],
    "object": ["=keep"],
}
"""3 x 6 x 3 candidates."""
FREE = Constraints(min_clean=None)  # a random model prefers no answer
ASKED = {
    "space": SPACE,
    "constraints": FREE,
    "sampler": "hybrid",
    "until": 51,
    "control": 17,
    "clean_n": 3,
    "heldout_n": 5,
}


LIGHT = {**ASKED, "clean_n": 1, "heldout_n": 0}


class Slow:
    """AP effects of one head from texts, by TransformerLens' hooks, and the prompts that a search is made on."""

    def __init__(self, model, pair, head=(0, 4), clean_n=3, heldout_n=5, space=SPACE):
        self.model, self.head, self.known = model, head, {}
        prepared = prepare(
            pair, model.tokenizer, space=space, clean_n=clean_n, heldout_n=heldout_n, seed=0, prepend_bos=True
        )
        self.space = prepared.space
        self.seen, self.heldout = (
            prepared.bind(prepared.pairs[:clean_n]),
            prepared.bind(prepared.pairs[clean_n : clean_n + heldout_n]),
        )

    def effects_of(self, pairs) -> np.ndarray:
        """Effects of (clean, corrupted, answer, distractor); those of which none is known are rows of the same runs."""
        new = [each for each in dict.fromkeys(pairs) if each not in self.known]
        if new:
            self.known |= dict(zip(new, self._effects(new), strict=True))
        return np.array([0.0 if each[0] == each[1] else self.known[each] for each in pairs])

    def _effects(self, pairs) -> list[float]:
        layer, head = self.head
        hook = HOOKS["heads"].format(layer)
        clean, corrupted = (torch.cat([self.model.to_tokens(pair[i]) for pair in pairs]) for i in (0, 1))
        with torch.no_grad():
            logits, cache = self.model.run_with_cache(clean, names_filter=[hook])
            patched = cache[hook].clone()
            patched[:, :, head] = self.model.run_with_cache(corrupted, names_filter=[hook])[1][hook][:, :, head]
            moved = self.model.run_with_hooks(clean, fwd_hooks=[(hook, lambda old, hook: patched)])
        answers = [[self.model.to_single_token(word) for word in pair[2:]] for pair in pairs]
        rows = range(len(pairs))
        answer, distractor = zip(*answers, strict=True)
        change = (moved - logits)[:, -1]
        return (change[rows, answer] - change[rows, distractor]).tolist()

    def pairs(self, candidate, bound=None) -> list[tuple[str, str, str, str]]:
        bound = bound or self.seen
        texts = zip(bound.pairs, bound.texts(candidate), strict=True)
        return [(pair.clean, text, pair.answer, pair.distractor) for pair, text in texts]

    def effects(self, candidate, bound=None) -> np.ndarray:
        return self.effects_of(self.pairs(candidate, bound))

    def values(self, candidates) -> list[float]:
        n = len(self.seen.pairs)
        effects = self.effects_of([pair for candidate in candidates for pair in self.pairs(candidate)])
        return abs(effects.reshape(-1, n).mean(1)).tolist()

    def value(self, candidate) -> float:
        return self.values([candidate])[0]

    def by_hand(self, bound) -> np.ndarray:
        return self.effects_of([pair.texts for pair in bound.pairs])


@pytest.fixture(scope="module")
def slow(small, pair) -> Slow:
    return Slow(small(EMBEDDED), pair)


@pytest.fixture(scope="module")
def costs() -> list[float]:
    """What the search of `found` had cost when its validation began."""
    return []


@pytest.fixture(scope="module")
def found(small, pair, costs) -> SearchResult:
    real = search_module.validate

    def validate_later(session, trials, **options):
        costs.append(session.cost)
        return real(session, trials, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_module, "validate", validate_later)
        return igap.search(small(EMBEDDED), pair, head="0.4", objective="ap", **ASKED)


@pytest.fixture(scope="module")
def brute(small, pair) -> SearchResult:
    """Of one clean prompt every candidate."""
    return igap.search(small(EMBEDDED), pair, "0.4", **{**LIGHT, "until": 54})


@pytest.fixture(scope="module")
def summary(found):
    return flatten(found.validation)


def near(number):
    """Float64, by another route: rounding alone."""
    return pytest.approx(number, rel=1e-8, abs=1e-10)


def rows(found, name):
    return tables(found.validation, found.objective.terms)[name]


def random_ones(found):
    return [one for one in found.trials if one.proposal.source in ("start", "random")]


def test_the_best_is_the_highest_trial_and_its_value_is_the_mean_effect_in_its_texts(found, summary, slow):
    values = slow.values([one.proposal.candidate for one in found.trials])
    assert [one.value for one in found.trials] == near(values)
    assert summary["best/value"] == near(max(values))
    assert summary["best/trial"] == int(np.argmax(values))
    assert found.best_value == near(max(values))
    assert len(found.trials) == len({one.proposal.candidate for one in found.trials}) == ASKED["until"]


def test_the_best_pairs_are_the_clean_prompts_with_the_candidates_texts(found, slow):
    best = found.validation.candidate
    texts = [(p.clean, text) for p, text in zip(slow.seen.pairs, slow.seen.texts(best), strict=True)]
    assert [(p.clean, p.corrupted) for p in found.validation.pairs] == [t for t in texts if t[0] != t[1]]
    assert found.best.clean == slow.seen.pairs[0].clean


def test_the_value_by_hand_is_that_of_the_swap_of_the_second_name(summary, slow):
    assert summary["by_hand/value"] == near(abs(slow.by_hand(slow.seen).mean()))


def test_the_random_control_is_the_best_of_the_random_trials_and_of_as_many_first_ones_of_the_search(found, summary):
    values = [one.value for one in random_ones(found)]
    own = [one.value for one in found.trials if one.proposal.source != "random"]
    assert len(own) > len(values)
    assert summary["random/n"] == len(values) >= 16
    assert summary["random/best"] == max(values)
    assert summary["random/mean"] == near(sum(values) / len(values))
    assert summary["random/search_at_equal_budget"] == max(own[: len(values)])


def test_chance_is_not_what_a_brute_force_search_tried(brute):
    result = brute
    assert {one.proposal.source for one in result.trials} == {"brute"}
    words = np.array([one.proposal.candidate for one in result.trials])
    shares, _ = variance_shares(words, np.array([one.value for one in result.trials]))
    for slot, share in zip(result.space.slots, shares, strict=True):
        assert flatten(result.validation)[f"slots/{slot.name}/variance_share"] == share
    assert flatten(result.validation)["random/n"] == 0
    assert flatten(result.validation)["random/best"] is None
    assert flatten(result.validation)["random/search_at_equal_budget"] is None


def test_all_one_word_changes_of_the_best_are_evaluated(found, summary, slow):
    best, expected = found.validation.candidate, {}
    for slot, one in enumerate(found.space.slots):
        for index, option in enumerate(one.options):
            if index != best[slot]:
                expected[one.name, option] = slow.value((*best[:slot], index, *best[slot + 1 :]))
    edits = rows(found, "single_edits")
    assert {(row["slot"], row["option"]): row["value"] for row in edits} == near(expected)
    assert [row["value"] for row in edits] == sorted((row["value"] for row in edits), reverse=True)
    assert (summary["single_edits/n"], summary["single_edits/of"]) == (9, 9)
    assert summary["single_edits/best"] == near(max(expected.values()))
    better = sum(value > slow.value(best) * (1 + 1e-6) for value in expected.values())
    assert summary["single_edits/better"] == better


def test_where_edits_are_too_many_those_with_the_largest_gains_are_evaluated(small, pair, monkeypatch):
    monkeypatch.setattr(neighbours, "SINGLE_EDITS", 4)
    best = (2, 3, 2, 0, 0, 0)
    with borrow(small(EMBEDDED)):
        session = opened(small(EMBEDDED), pair, head="0.4", space=SPACE)
        bound = session.bound.unshare()
        evaluator, objective = session.cached_evaluator(bound), session.objective
        scores = objective.first_order_scores(evaluator.evaluator, best)
        edits = neighbours.evaluate_single_edits(session, bound, objective, evaluator, best, 0.0)
    others = [(s, o) for s, n in enumerate(session.space.sizes) for o in range(n) if o != best[s]]
    top = sorted(others, key=lambda edit: -scores[edit[0]][edit[1]])[:4]
    slots = session.space.slots
    assert {(edit.slot, edit.option) for edit in edits.edits} == {(slots[s].name, slots[s].options[o]) for s, o in top}
    assert (len(edits.edits), edits.n_possible) == (4, 9)


def partly(slow, best, slots) -> float:
    """The value of the clean prompts with the best candidate's words in these slots only."""
    pairs, places = [], {"first": 1, "second": 3, "subject": 8}
    for clean, text, *answers in slow.pairs(best):
        words, whole = clean.split(), text.split()
        for slot in slots:
            words[places[slot]] = whole[places[slot]]
        pairs.append((clean, " ".join(words), *answers))
    return abs(slow.effects_of(pairs).mean())


def test_the_ladder_has_the_best_subset_of_the_winners_words_of_each_size(found, summary, slow):
    best = found.validation.candidate
    changed = [found.space.slots[i].name for i in found.space.edits(best)]
    assert len(changed) >= 2
    ladder = rows(found, "ladder")
    assert [row["edits"] for row in ladder] == list(range(1, len(changed) + 1))
    for row in ladder:
        value = max(partly(slow, best, some) for some in itertools.combinations(changed, row["edits"]))
        assert row["value"] == near(value)
        assert row["share"] == near(value / slow.value(best))
        assert summary[f"ladder/{row['edits']}"] == row["value"]
        named = [part.split(" := ")[0] for part in row["words"].split(", ")]
        assert partly(slow, best, named) == near(value)


@pytest.mark.parametrize(
    ("first", "clean_n", "rejection"),
    [
        (["=keep", "Tom", "Anna"], 2, ""),
        (["Tom", "Anna"], 2, "outside the space"),
        (["John", "Tom", "Anna"], 1, ""),  # the clean prompt's own word
        (["John", "Tom", "Anna"], 2, "outside the space"),  # which the second clean prompt does not have
    ],
)
def test_a_prompt_of_few_words_says_whether_the_space_has_it(small, pair, first, clean_n, rejection):
    space = {**SPACE, "first": first, "second": ["Paul", "Mark"], "subject": ["=keep"]}
    with borrow(small(EMBEDDED)):
        session = opened(small(EMBEDDED), pair, head="0.4", space=space, clean_n=clean_n)
        bound = session.bound.unshare()
        judge = functools.partial(neighbours.judge_subset, session, bound, session.cached_evaluator(bound))
        best = (first.index("Tom"), 0, 0, 0, 0, 0)
        assert judge(best, (0, 1)) == "", "the whole candidate"
        assert judge(best, (1,)) == rejection
        assert judge(best, (0,)) == "outside the space", "second offers no clean word"


def test_a_prompt_of_few_words_says_whether_it_is_out_of_bounds(small, pair):
    with borrow(small(EMBEDDED)):
        free = opened(small(EMBEDDED), pair, head="0.4", space=SPACE)
        bound = free.bound.unshare()
        best = (2, 3, 0, 0, 0, 0)
        tokens = bound.with_slots(best, (0,))[:, None]
        fluency = free.cached_evaluator(bound).numbers(tokens, ["fluency"])["fluency"].item()
        for least, rejection in ((fluency - 0.01, ""), (fluency + 0.01, "out of bounds")):
            session = opened(small(EMBEDDED), pair, head="0.4", space=SPACE, constraints={"min_fluency": least})
            evaluator = session.cached_evaluator(bound)
            assert neighbours.judge_subset(session, bound, evaluator, best, (0,)) == rejection
            assert neighbours.judge_subset(session, bound, evaluator, best, (0, 1)) == "", "trials are judged before"


def test_the_ladder_and_the_simplest_form_are_written_with_whether_the_search_could_give_them(small, pair):
    words = {**SPACE, "first": ["Tom", "Anna"], "second": ["Tom", "Anna", "Paul"]}
    result = igap.search(small(EMBEDDED), pair, "0.4", **{**LIGHT, "space": words})
    summary, steps = flatten(result.validation), result.validation.by_edit_count
    may = [int("first :=" in step.words and "second :=" in step.words) for step in steps]
    assert {0, 1} == set(may), "both have no clean word"
    assert [step.rejection for step in steps] == ["" if each else "outside the space" for each in may]
    assert [row["allowed"] for row in rows(result, "ladder")] == may
    assert [summary[f"ladder/{step.edits}/allowed"] for step in steps] == may
    simplest = summary["simplest/words"]
    assert summary["simplest/allowed"] == int("first :=" in simplest and "second :=" in simplest)


def test_of_a_best_value_below_0_there_are_no_shares(small, pair):
    asked = {**LIGHT, "heldout_n": 2, "objective": "selectivity", "penalty": 1000.0, "until": 16}
    validation = igap.search(small(EMBEDDED), pair, "0.4", **asked).validation
    assert validation.best.value < 0
    for measured in (validation.heldout, *validation.by_edit_count):
        assert measured.share == Missing("the best value is not above 0")


def test_all_is_measured_in_the_winners_direction(small, pair):
    """Head 2.4: the pair made by hand and some changes of the best turn the effect round."""
    result = igap.search(small(EMBEDDED), pair, "2.4", **{**ASKED, "until": 54})
    slow, summary = Slow(small(EMBEDDED), pair, (2, 4)), flatten(result.validation)
    best = result.validation.candidate
    sign = np.sign(slow.effects(best).mean())
    assert summary["best/sign"] == "drop"
    assert sign == -1
    assert summary["best/value"] == result.best_value == near(-slow.effects(best).mean())
    assert summary["by_hand/value"] == near(-slow.by_hand(slow.seen).mean())
    assert summary["by_hand/own"] == near(-slow.by_hand(slow.seen)[0])
    assert summary["heldout/by_hand"] == near(-slow.by_hand(slow.heldout).mean())
    assert summary["by_hand/value"] < 0
    expected = {}
    for slot, one in enumerate(result.space.slots):
        for index, option in enumerate(one.options):
            if index != best[slot]:
                effect = slow.effects((*best[:slot], index, *best[slot + 1 :])).mean()
                expected[one.name, option] = -effect
    edits = rows(result, "single_edits")
    assert {(row["slot"], row["option"]): row["value"] for row in edits} == near(expected)
    assert min(expected.values()) < 0
    without = next(row for row in rows(result, "slots") if row["slot"] == "first")
    assert without["value_without"] < 0
    assert without["loss"] > summary["best/value"]


def test_of_a_disagreement_nothing_turns(small, pair):
    result = igap.search(small(EMBEDDED), pair, "2.4", **{**LIGHT, "until": 4, "objective": "disagreement"})
    assert flatten(result.validation)["best/sign"] == "abs"
    assert flatten(result.validation)["by_hand/value"] >= 0


def test_the_best_is_a_prompt_that_is_not_the_clean_one(small, pair):
    """Where every change lowers the value, the clean prompt's own 0 is no finding."""
    space = {**SPACE, "first": ["=keep"], "second": ["=keep", "=N1"], "subject": ["=keep"]}
    asked = {**LIGHT, "space": space, "until": 2}
    values = {}
    for sign in ("raise", "drop"):
        result = igap.search(small(EMBEDDED), pair, "0.4", sign=sign, **asked)
        trials = {one.proposal.candidate: one.value for one in result.trials}
        assert trials.pop((0,)) == 0
        values[sign] = result.best_value
        assert values[sign] == near(max(trials.values()))
        assert result.best.corrupted != result.best.clean
    assert min(values.values()) < 0


def test_a_search_of_the_clean_prompt_alone_finds_nothing(small, pair):
    space = {**SPACE, "first": ["=keep", "John"], "second": ["=keep"], "subject": ["=keep"]}
    with pytest.raises(InputError, match=r"^search: all corrupted prompts tried are the clean ones\."):
        igap.search(small(EMBEDDED), pair, "0.4", **{**LIGHT, "space": space, "until": 2})


def test_changes_that_may_not_be_do_not_count_as_better(small, pair, brute):
    near_ones = SpaceConfig(slots={name: tuple(words) for name, words in SPACE.items()}, max_edits=1)
    few = igap.search(small(EMBEDDED), pair, "0.4", **{**LIGHT, "space": near_ones, "until": 54})
    for plain, n_tried in ((few, 10), (brute, 54)):
        assert len(plain.trials) == n_tried
        assert flatten(plain.validation)["single_edits/better"] == 0, "all there are have been tried"
        best, names = plain.validation.candidate, [slot.name for slot in plain.space.slots]
        for row in rows(plain, "single_edits"):
            slot = names.index(row["slot"])
            option = plain.space.slots[slot].options.index(row["option"])
            assert row["allowed"] == plain.space.is_allowed((*best[:slot], option, *best[slot + 1 :]))
    model, (answer, distractor) = small(EMBEDDED), map(small(EMBEDDED).to_single_token, (" John", " Mary"))
    candidates = [trial.proposal.candidate for trial in brute.trials]
    texts = [text for each in candidates for _, text, *_ in Slow(model, pair, clean_n=1).pairs(each)]
    with torch.no_grad():
        last = model(torch.cat(list(map(model.to_tokens, texts))))[:, -1]
    corrupted = dict(zip(candidates, (last[:, answer] - last[:, distractor]).tolist(), strict=True))
    bound = corrupted[max(brute.trials, key=lambda trial: trial.values[0]).proposal.candidate]
    side = "max_corrupted" if np.median(list(corrupted.values())) < bound else "min_corrupted"
    off = -1e-3 if side == "max_corrupted" else 1e-3
    bounds = Constraints(min_clean=None, **{side: bound + off})
    result = igap.search(model, pair, "0.4", **{**LIGHT, "until": 54, "constraints": bounds})
    assert result.best_value < brute.best_value
    assert flatten(result.validation)["single_edits/better"] == 0
    edits = rows(result, "single_edits")
    assert {row["allowed"] for row in edits} == {0, 1} or max(row["value"] for row in edits) <= result.best_value


def test_the_front_is_that_of_the_trials_it_was_told(small, pair):
    """Another worker may add some meanwhile."""
    with borrow(small(EMBEDDED)):
        session = opened(small(EMBEDDED), pair, head="0.4", terms=("ap", "edits"))
        session.explore(24)
        trials = session.trials.all()[:12]
        front = validate.validate(session, trials).front
    assert {row.corrupted for row in front} <= {session.bound.texts(one.proposal.candidate)[0] for one in trials}


def test_random_and_search_at_equal_budget_need_random_trials_that_are_not_the_searchs_own():
    def one(source, value, **more):
        return EvaluatedTrial(Proposal((0,), source), (value,), (value,), **more)

    starts = [one("start", v) for v in (1.0, 2.0)]
    chosen = [one("incumbent", v) for v in (5.0, 4.0, 9.0)]
    alone = validate._compare_with_random(starts + chosen)
    assert (alone.n, alone.best) == (2, 2.0)
    assert alone.search_at_equal_budget == Missing("no random trials beside the search's own start")
    broken = one("random", 7.0, violations={"min_fluency": 1.0})
    found = validate._compare_with_random([*starts, *chosen, one("random", 3.0), broken])
    assert (found.n, found.n_feasible, found.best) == (4, 3, 3.0), "what broke a bound was drawn, too"
    assert found.search_at_equal_budget == 5.0, "of the first four: 1, 2, 5, 4"
    chance = validate._compare_with_random([one("random", v) for v in (1.0, 2.0)])
    assert chance.search_at_equal_budget == Missing("no trials but random ones")


def test_of_the_best_random_trial_and_of_the_searchs_own_the_direction_is_known():
    def one(source, value, effect):
        return EvaluatedTrial(Proposal((0,), source), (value,), (effect, 0.0))

    trials = [one("start", 1.0, 1.0), one("incumbent", 3.0, 3.0), one("random", 2.0, -2.0)]
    control = validate._compare_with_random(trials)
    assert (control.best_sign, control.search_sign) == ("drop", "raise")
    alone = validate._compare_with_random(trials[:2])
    assert (alone.best_sign, alone.search_sign) == ("raise", "abs")


def test_the_ladder_knows_trials_of_few_edits(small, pair):
    space = {**SPACE, "first": ["=keep", "=N2", "Tom", "Anna", "Paul"], "subject": ["=keep", "=IO", "Anna", "Tom"]}
    result = igap.search(small(EMBEDDED), pair, "2.4", **{**LIGHT, "space": space, "until": 120})
    keep = (0, 0, 0)
    by_edits = {}
    for one in result.trials:
        n = sum(a != b for a, b in zip(one.proposal.candidate, keep, strict=True))
        if flatten(result.validation)["best/sign"] == ("raise" if one.effects[0] > 0 else "drop"):
            by_edits[n] = max(by_edits.get(n, 0), one.value)
    assert len(result.trials) == result.space.size
    for row in rows(result, "ladder"):
        assert row["value"] == near(by_edits[row["edits"]]), "all have been tried"


def test_no_neutral_words_that_fit_are_a_reason_and_no_error(small, pair, monkeypatch):
    monkeypatch.setattr(validate, "_NEUTRAL_SLOTS", {"place": "animals"})
    real = validate.template_space

    def template_space(template, lists, *rest, **options):
        if "animals" in lists["place"]:
            raise InputError("no word fits")
        return real(template, lists, *rest, **options)

    monkeypatch.setattr(validate, "template_space", template_space)
    summary = flatten(igap.search(small(EMBEDDED), pair, "0.4", **{**LIGHT, "until": 2}).validation)
    assert (summary["neutral/p95"], summary["neutral/p95/reason"]) == (None, "no word fits")


def test_what_the_validation_costs_is_in_the_searchs_cost(found, costs):
    (before,) = costs
    assert found.cost > before + 20
    assert found.n_cached <= len(found.trials)


def test_the_simplest_form_is_left_when_words_that_do_little_are_taken_out_one_by_one(unchecked, monkeypatch):
    """Worths 10, 1, -2, 0.4 alone, 1 more for the first two together: out go the third, then the fourth."""
    weights = [10, 1, -2, 0.4]

    def objective_values(kept):
        return np.array([sum(weights[slot] for slot in some) + ({0, 1} <= set(some)) for some in kept])

    bound = SimpleNamespace(changed_slots=lambda best: (0, 1, 2, 3), with_slots=lambda best, slots: tuple(slots))
    monkeypatch.setattr(neighbours, "_describe_word", lambda space, best, slot: f"slot {slot}")
    judge = {(0,): "outside the space"}.get
    prune = functools.partial(
        neighbours.prune_prompt, None, bound, objective_values, lambda _, slots: judge(tuple(slots), ""), (0, 0, 0, 0)
    )
    assert prune(10.4) == PrunedPrompt(1, 10.0, "slot 0", "outside the space")
    assert prune(12.0) == PrunedPrompt(2, 12.0, "slot 0, slot 1", "")
    assert prune(12.7).edits == 3, "12 is less than 95%"
    assert prune(20.0) == PrunedPrompt(4, 20.0, ANY, "")


def test_the_simplest_forms_value_is_that_of_its_words(found, summary, slow):
    named = [part.split(" := ")[0] for part in summary["simplest/words"].split(", ")]
    assert len(named) == summary["simplest/edits"]
    value = partly(slow, found.validation.candidate, named)
    assert summary["simplest/value"] == near(value)
    assert value >= 0.95 * summary["best/value"]


def test_a_slots_loss_is_what_the_best_loses_without_its_word(found, summary, slow):
    best = found.validation.candidate
    names = [slot.name for slot in found.space.slots]
    slots = rows(found, "slots")
    assert {row["slot"] for row in slots} == set(names)
    for row in slots:
        without = partly(slow, best, [name for name in names if name != row["slot"]])
        assert row["value_without"] == near(without)
        assert row["loss"] == near(slow.value(best) - without)
        assert summary[f"slots/{row['slot']}/loss"] == row["loss"]
    assert [row["loss"] for row in slots] == sorted((row["loss"] for row in slots), reverse=True)


def test_a_slots_share_of_variance_is_that_in_the_random_trials(found, summary):
    ones = random_ones(found)
    words, values = np.array([one.proposal.candidate for one in ones]), np.array([one.value for one in ones])
    for slot, share, error in zip(found.space.slots, *variance_shares(words, values), strict=True):
        assert summary[f"slots/{slot.name}/variance_share"] == share
        assert summary[f"slots/{slot.name}/variance_share_error"] == error


def test_held_out_value_mean_and_interval_are_those_of_prompts_that_the_search_never_saw(found, summary, slow):
    best = found.validation.candidate
    assert not {p.clean for p in slow.heldout.pairs} & {p.clean for p in found.clean}
    signed = slow.effects(best, slow.heldout) * np.sign(slow.effects(best).mean())
    assert summary["heldout/n"] == 5
    assert summary["heldout/value"] == summary["heldout/mean"] == near(signed.mean())
    assert summary["heldout/share"] == near(signed.mean() / slow.value(best))
    interval = mean_intervals(signed[:, None], seed=0)
    assert (summary["heldout/low"], summary["heldout/high"]) == near((interval.low[0], interval.high[0]))
    sign = np.sign(slow.effects(best).mean())
    assert summary["heldout/by_hand"] == near(sign * slow.by_hand(slow.heldout).mean())


def test_an_effect_that_turns_on_held_out_prompts_counts_as_negative(small, pair):
    asked = {**ASKED, "until": 54, "clean_n": 1}
    result = igap.search(small(EMBEDDED), pair, "2.3", **asked)
    slow = Slow(small(EMBEDDED), pair, (2, 3), clean_n=1)
    best = result.validation.candidate
    seen, held = slow.effects(best).mean(), slow.effects(best, slow.heldout).mean()
    assert seen < 0 < held
    assert flatten(result.validation)["heldout/value"] == near(-held)


def test_effects_gaps_scores_and_ranks_are_those_of_activation_patching(found, summary, small, slow):
    for name, pairs in (("by_hand", slow.seen.pairs), ("best", found.validation.pairs)):
        maps = [activation_patching(small(EMBEDDED), one) for one in pairs]
        effects, gaps = np.array([m.effect[0, 4].item() for m in maps]), np.array([m.gap for m in maps])
        # `_singly` keeps float32.
        assert summary[f"{name}/ap"] == pytest.approx(effects.mean(), rel=1e-5)
        assert summary[f"{name}/gap"] == pytest.approx(gaps.mean(), rel=1e-5)
        assert summary[f"{name}/score"] == pytest.approx((effects / gaps).mean(), rel=1e-4)
        assert summary[f"{name}/n_scored"] == len(pairs)
        grid = np.mean([m.effect.numpy() for m in maps], axis=0)
        assert summary[f"{name}/rank"] == 1 + int((abs(grid) > abs(grid[0, 4])).sum())
        table = {row["name"]: row[f"{name}/effect"] for row in rows(found, "heads")}
        assert table == near({f"{i}.{j}": grid[i, j] for i in range(4) for j in range(8)})


def test_scores_are_missing_where_the_gap_is_small(small, pair, found):
    maps = [activation_patching(small(EMBEDDED), one) for one in found.validation.pairs]
    least = sorted(abs(m.gap) for m in maps)[-1] - 1e-6  # of all but one pair the gap is smaller
    strict = PromptPair(pair.clean, pair.corrupted, pair.answer, pair.distractor, min_gap=least)
    summary = flatten(igap.search(small(EMBEDDED), strict, "0.4", **{**ASKED, "heldout_n": 0}).validation)
    (score,) = [m.effect[0, 4].item() / m.gap for m in maps if abs(m.gap) >= least]
    assert summary["best/n_scored"] == 1
    assert summary["best/score"] == pytest.approx(score, rel=1e-4)
    assert summary["by_hand/n_scored"] == sum(
        abs(activation_patching(small(EMBEDDED), one).gap) >= least for one in found.clean
    )
    assert (summary["by_hand/score"] is None) == (summary["by_hand/n_scored"] == 0)


def test_any_two_of_the_top_prompts_are_two_words_apart_and_the_first_is_the_best(found, summary):
    top = rows(found, "top")
    assert 1 < len(top) <= 20
    assert [row["rank"] for row in top] == list(range(1, len(top) + 1))
    texts = {found.space.rule(one.proposal.candidate): one.proposal.candidate for one in found.trials}
    chosen = [texts[row["rule"]] for row in top]
    for one, other in itertools.combinations(chosen, 2):
        assert sum(a != b for a, b in zip(one, other, strict=True)) >= 2
    assert top[0]["rule"] == summary["best/rule"]
    for one in found.trials:  # what is not there is one word from a better one that is
        nearest = min(sum(a != b for a, b in zip(one.proposal.candidate, o, strict=True)) for o in chosen)
        assert nearest <= 1 or one.value <= top[-1]["ap"]


def test_the_front_of_a_pareto_study_holds_what_no_trial_beats(small, pair, found):
    assert rows(found, "front") == []
    result = igap.search(small(EMBEDDED), pair, "0.4", objective=["ap", "edits"], **{**LIGHT, "sampler": "auto"})
    points = [(one.values[0], -one.values[1]) for one in result.trials]

    def beaten(point):
        return any(other != point and other[0] >= point[0] and other[1] >= point[1] for other in points)

    expected = {point for point in points if not beaten(point)}
    front = [(row["ap"], -row["edits"]) for row in rows(result, "front")]
    assert set(front) == expected
    assert len(front) == len(expected) >= 2
    assert rows(result, "top")


def test_where_no_trial_is_within_the_bounds_the_error_counts_what_each_bound_removed(small, pair):
    bounds = Constraints(min_clean=None, min_corrupted=-1e6, max_corrupted=-1e6, min_fluency=1e6)
    with pytest.raises(
        InputError,
        match=r"none of 20 trials has a value within the bounds: constraints.max_corrupted removed 20; "
        r"constraints.min_fluency removed 20. Loosen a bound",
    ):
        igap.search(small(EMBEDDED), pair, "0.4", **{**LIGHT, "until": 20, "constraints": bounds})


def test_the_same_search_again_gives_the_same_validation_and_leaves_the_model_as_it_was(small, pair, found):
    model = small(EMBEDDED)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    again = igap.search(model, pair, "0.4", **ASKED)
    assert flatten(again.validation) == flatten(found.validation)
    assert tables(again.validation, ("ap",)) == tables(found.validation, ("ap",))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted


# deletion and neutral edits -------------------------------------------------------------------------------------------


def test_neutral_edits_change_place_verb_and_object_alone_and_the_95th_percentile_is_theirs(
    ioi_mini, pair, monkeypatch
):
    drawn = []
    real = validate.draw
    monkeypatch.setattr(validate, "NEUTRAL", 5)
    monkeypatch.setattr(
        validate, "draw", lambda history, *a: drawn.append((history.space, real(history, *a))) or drawn[0][1]
    )
    asked = {**ASKED, "until": 16, "clean_n": 2, "heldout_n": 1}
    summary = flatten(igap.search(ioi_mini, pair, "2.2", **asked).validation)
    ((space, proposals),) = drawn
    assert [slot.name for slot in space.slots] == ["place", "verb", "object"]
    slow = Slow(ioi_mini, pair, (2, 2), clean_n=2, heldout_n=1)
    values = []
    for one in proposals:
        place, verb, thing = space.words(one.candidate)
        pairs = []
        for clean in slow.seen.pairs:
            head, _, tail = clean.clean.partition(" to the ")
            old_place, rest = tail.split(", ")
            subject, old_verb, *others = rest.split()
            old = " ".join(others[1:-1])
            words = [new if not new.startswith("=") else kept
                     for new, kept in ((place, old_place), (verb, old_verb), (thing, old))]  # fmt: skip
            text = f"{head} to the {words[0]}, {subject} {words[1]} a {words[2]} to"
            pairs.append((clean.clean, text, clean.answer, clean.distractor))
        values.append(abs(slow.effects_of(pairs).mean()))
    assert summary["neutral/n"] == 5
    assert max(values) > 1e-3
    assert summary["neutral/p95"] == pytest.approx(np.quantile(values, 0.95), rel=1e-3)  # float32


def test_a_counterfactual_writes_in_where_its_effect_is_over_twice_the_deletion_or_of_the_other_sign(
    ioi_mini, pair, monkeypatch
):
    monkeypatch.setattr(pair_effects, "Baseline", Baseline)  # of as many ordinary prompts as users have
    deletions = activation_patching(ioi_mini, pair, baseline="mean").effect
    with open_pairs(ioi_mini, pair) as whole:
        for head, corrupted, is_injection in (
            ((3, 5), "After John and Mary went to the store, John gave a bottle of milk to", 0),
            ((1, 2), "After John and John went to the store, Jack gave a bottle of milk to", 1),  # over twice as large
            ((2, 2), "After John and Tom went to the store, Mary gave a bottle of milk to", 1),  # of the other sign
        ):
            best = PromptPair(pair.clean, corrupted, pair.answer, pair.distractor)
            target = Target((("heads", *head),))
            with open_pairs(ioi_mini, best) as opened:
                effects, _ = measure_pairs(opened, target)
            found = delete(whole, target, effects.ap)
            deletion = deletions[head].item()
            effect = activation_patching(ioi_mini, best).effect[head].item()
            assert found.ap == pytest.approx(deletion, rel=1e-3), head  # float32
            assert found.injected == pytest.approx(effect - deletion, rel=1e-3), head
            assert found.is_injection == is_injection, head
            assert (effect / deletion < 0, effect / deletion > 2).count(True) == is_injection, head


def test_what_cannot_be_told_is_missing_and_says_why(small, pair):
    words = {**SPACE, "second": ["=keep", "=N1", "Tom"]}
    asked = {**ASKED, "space": words, "until": 16, "clean_n": 1, "heldout_n": 0}
    summary = flatten(igap.search(small("gpt2"), pair, "1.2", **asked).validation)
    assert summary["deletion/ap"] is None
    assert "deletion/writes_in" not in summary
    assert "the tokenizer does not know" in summary["deletion/ap/reason"]
    assert (summary["heldout/value"], summary["heldout/value/reason"]) == (None, "heldout.n=0")
