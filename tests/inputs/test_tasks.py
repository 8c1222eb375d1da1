"""The tasks that come as files of pairs."""

import pytest

from igap import PromptPair
from igap.cli import main
from igap.cli.compose import compose_one
from igap.counterfactual.spaces.template import match_slots
from igap.inputs.files import read_pairs, task_names
from igap.inputs.labelled_prompts import read_prompts

NAMES = ["capital-country", "gendered-pronoun", "greater-than", "greater-than-digits", "subject-verb"]


def test_there_are_five():
    assert task_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_task_is_some_dozens_of_different_pairs_of_equal_numbers_of_words(name):
    rows = list(read_pairs(name).values())
    assert 24 <= len(rows) <= 36
    assert len({tuple(row.values()) for row in rows}) == len(rows)
    for row in rows:
        template = row.pop("template", None)
        PromptPair(**row)
        assert template is None or match_slots(template, row["clean"]) is not None
        clean, corrupted = row["clean"].split(), row["corrupted"].split()
        assert len(clean) == len(corrupted)
        assert sum(one != other for one, other in zip(clean, corrupted, strict=True)) == 1
        assert not row["clean"][-1].isspace()
        glued = name.startswith("greater-than")
        assert row["answer"][0].isspace() == row["distractor"][0].isspace() == (not glued)


def test_in_greater_than_the_answer_is_possible_and_the_distractor_is_so_after_the_corrupted_prompt_only():
    for row in read_pairs("greater-than").values():
        start, other = (int(row[name].split(" to the year")[0][-2:]) for name in ("clean", "corrupted"))
        assert other < int(row["distractor"]) < start < int(row["answer"])
        assert row["clean"][-2:] == row["clean"].split("year ")[1][:2]


def test_the_same_holds_for_decades():
    for row in read_pairs("greater-than-digits").values():
        start, other = (int(row[name].split(" to the year")[0][-2]) for name in ("clean", "corrupted"))
        assert other < int(row["distractor"]) < start < int(row["answer"])
        assert row["clean"][-2:] == row["clean"].split("year ")[1][:2]


def test_the_other_prompt_of_a_country_has_the_other_answer():
    rows = list(read_pairs("capital-country").values())
    capitals = {}
    for row in rows:
        (city,) = set(row["clean"].split()) - set(row["corrupted"].split())
        (other,) = set(row["corrupted"].split()) - set(row["clean"].split())
        assert capitals.setdefault(city, row["answer"]) == row["answer"]
        assert capitals.setdefault(other, row["distractor"]) == row["distractor"]
    assert capitals["Paris"] == " France"
    assert len(set(capitals.values())) == len(capitals)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_lacks_the_words_is_told_so(name, capsys):
    assert main(["run", f"prompts={name}", "tracking=disabled"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"igap: {name}, row 1 (line 2): ")
    assert "the tokenizer does not know '" in error
    assert error.count("\n") == 1


def test_a_task_is_also_what_performance_is_measured_on():
    prompts = read_prompts("subject-verb")
    assert (prompts[0].text, prompts[0].answer, prompts[0].distractor) == ("The dog near the tree", " is", " are")


def test_a_name_that_is_neither_file_nor_task_is_refused_with_the_tasks(capsys):
    config = compose_one(["prompts=greater-than"]).config
    assert config.prompts.file == "greater-than"
    with pytest.raises(
        ValueError, match=r"got greater, wanted a name that ends in .*one of igap's own tasks \(capital-"
    ):
        read_pairs("greater")
