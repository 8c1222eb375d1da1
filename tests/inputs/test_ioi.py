import re
from collections import Counter

import pytest

from igap.inputs.ioi import HELD_OUT_TEMPLATE, TEMPLATES, generate_animals, generate_ioi, is_held_out
from igap.inputs.words import ANIMALS, NAMES, OBJECTS, PLACES, VERBS


def test_the_lists_are_long_and_hold_no_word_twice():
    assert len(TEMPLATES) >= 10
    for words in (NAMES, PLACES, OBJECTS, VERBS):
        assert len(words) == len(set(words)) >= 100
    assert len(ANIMALS) == len(set(ANIMALS))


def test_an_example_differs_in_who_acts_and_only_there():
    for example in generate_ioi(300, 0):
        answer, distractor = example.answer.strip(), example.distractor.strip()
        clean, corrupted = example.clean.split(), example.corrupted.split()
        changed = [(a, b) for a, b in zip(clean, corrupted, strict=True) if a != b]
        assert changed == [(distractor, answer)]
        assert Counter(re.findall(r"\w+", example.clean))[distractor] == 2
        assert Counter(re.findall(r"\w+", example.clean))[answer] == 1
        assert example.answer == f" {answer}"
        assert example.clean.endswith(" to")


def test_the_order_says_where_the_answer_stands():
    for order in ("ABBA", "BABA"):
        for example in generate_ioi(50, 0, orders=[order]):
            first = min((example.clean.index(w.strip()), w) for w in (example.answer, example.distractor))[1]
            assert example.order == order
            assert first == (example.answer if order == "ABBA" else example.distractor)


def test_every_template_name_and_order_is_drawn():
    drawn = generate_ioi(4000, 0)
    assert {e.template for e in drawn} == set(range(len(TEMPLATES)))
    assert {e.answer.strip() for e in drawn} == set(NAMES)
    counts = Counter(e.order for e in drawn)
    assert abs(counts["ABBA"] - counts["BABA"]) < 4 * 4000**0.5, "four standard deviations of a fair coin"


def test_the_same_seed_gives_the_same_examples_and_another_others():
    assert generate_ioi(20, 0) == generate_ioi(20, 0)
    assert generate_ioi(20, 0) != generate_ioi(20, 1)
    assert generate_animals(20, 0) == generate_animals(20, 0)


def test_the_first_template_gives_the_notebooks_prompt():
    assert TEMPLATES[0].format(
        first="John", second="Mary", subject="Mary", place="store", verb="gave", object="bottle of milk"
    ) == ("After John and Mary went to the store, Mary gave a bottle of milk to")
    assert {"John", "Mary"} <= set(NAMES)
    assert "store" in PLACES
    assert "gave" in VERBS
    assert "bottle of milk" in OBJECTS
    assert {"cat", "dog"} <= set(ANIMALS)


def test_sentences_about_animals_have_a_name_that_acts_and_end_with_an_animal():
    for sentence in generate_animals(100, 0):
        words = re.findall(r"\w+", sentence)
        assert sentence.split()[-1] in ANIMALS
        assert sum(word in NAMES for word in words) >= 1
        assert words[-3:-1] == ["to", "the"]


def test_one_pair_of_names_in_eight_is_held_out_whatever_its_order():
    pairs = [(a, b) for i, a in enumerate(NAMES) for b in NAMES[:i]]
    share = sum(is_held_out(a, b) for a, b in pairs) / len(pairs)
    assert abs(share - 1 / 8) < 4 * (1 / 8 * 7 / 8 / len(pairs)) ** 0.5, "four standard errors"
    assert all(is_held_out(a, b) == is_held_out(b, a) for a, b in pairs)


def test_the_held_out_template_and_names_are_not_trained_on():
    from igap.models.ioi_mini.train import sentences

    fixed = re.sub(r"{\w+}", ".+", re.escape(TEMPLATES[HELD_OUT_TEMPLATE]).replace(r"\{", "{").replace(r"\}", "}"))
    trained = sentences(2000, 0, 0.04)
    assert len(trained) == 2000
    assert not [sentence for sentence in trained if re.match(fixed, sentence)]
    assert re.match(fixed, generate_ioi(1, 0, templates=[HELD_OUT_TEMPLATE])[0].clean)
    for sentence in trained:
        names = sorted({word for word in re.findall(r"\w+", sentence) if word in NAMES})
        assert len(names) < 2 or not is_held_out(*names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n is 0; a data set has at least 1 example"),
        ({"templates": [99]}, r"templates are \[99\]; wanted indices below"),
        ({"templates": []}, r"templates are \[\]; wanted indices"),
        ({"names": ["John", "John"]}, "an example needs two different names"),
        ({"orders": ["ABAB"]}, r"orders are \['ABAB'\]; wanted ABBA, BABA or both"),
    ],
)
def test_impossible_requests_are_refused(arguments, message, unchecked):
    with pytest.raises(ValueError, match=message):
        generate_ioi(**{"n": 1, "seed": 0, **arguments})
