import json

import pytest

from igap.inputs.ioi import generate_ioi
from igap.inputs.labelled_prompts import Prompt, generate_prompts, read_prompts, write_prompts
from igap.models.load import EMBEDDED, read_header

NOTEBOOK = [
    {"prompt": "Then, Tom and Anna had a lot of fun. Anna gave a ring to", "answer": "Tom"},
    {"prompt": "After John and Mary went to the store, Mary gave it to", "answer": " John"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return read_header(EMBEDDED).tokenizer


def test_the_notebooks_file_is_read_and_its_answers_get_the_space_that_continues_the_prompt(tmp_path):
    file = tmp_path / "ioi_dataset.json"
    file.write_text(json.dumps(NOTEBOOK))
    assert read_prompts(str(file)) == [
        Prompt(NOTEBOOK[0]["prompt"], " Tom"),
        Prompt(NOTEBOOK[1]["prompt"], " John"),
    ]


def test_an_answer_that_goes_on_without_a_space_stays_as_it_is(tmp_path):
    file = tmp_path / "years.jsonl"
    file.write_text(json.dumps({"prompt": "The war lasted from 1741 to 17", "answer": "63", "distractor": "12"}))
    assert read_prompts(str(file)) == [Prompt("The war lasted from 1741 to 17", "63", "12")]


def test_of_a_prompt_pair_the_clean_prompt_is_taken(tmp_path):
    file = tmp_path / "pairs.csv"
    file.write_text("clean,corrupted,answer,distractor\nHe gave it to,She gave it to, John, Mary\n")
    assert read_prompts(str(file)) == [Prompt("He gave it to", " John", " Mary")]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
@pytest.mark.parametrize("distractor", [" Mary", None])
def test_what_is_written_is_read_again(tmp_path, suffix, distractor):
    file = str(tmp_path / f"prompts{suffix}")
    prompts = [Prompt('He said "a, b" to', " John", distractor), Prompt("Später gab er es zu", " Tom", distractor)]
    write_prompts(file, prompts)
    assert read_prompts(file) == prompts


def test_generated_prompts_are_the_generators_first_and_never_alone_in_their_length(tokenizer):
    found = generate_prompts(100, 0, tokenizer)
    assert len(found) == 100
    first = [one.clean for one in generate_ioi(200, 0)]
    fewest = [
        min(map(lengths.count, lengths))
        for lengths in (
            [len(tokenizer(text)["input_ids"]) for text in texts] for texts in (first[:100], [p.text for p in found])
        )
    ]
    assert fewest[0] == 1 < fewest[1]
    assert [prompt.text for prompt in found] == [text for text in first if text in {prompt.text for prompt in found}]
    assert found == generate_prompts(100, 0, tokenizer) != generate_prompts(100, 4, tokenizer)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "He", "anwser": "b"},
            r"two\.json, row 2: got the fields prompt, anwser, wanted exactly prompt, answer or prompt, answer, "
            r"distractor or clean, corrupted, answer, distractor\. Rename anwser to answer\.",
        ),
        ({"prompt": "He"}, r"row 2: got the fields prompt, wanted .*\. Add answer\."),
        ({"clean": "He", "answer": " b", "distractor": " c"}, r"row 2: .*Add corrupted\."),
        ({"prompt": "He", "answer": " "}, r'row 2: answer: got " ", wanted a text with words'),
        ({"prompt": "He", "answer": "a", "note": "b"}, r"row 2: got the fields .*, wanted exactly .*\. Remove note\."),
        ({"prompt": 3, "answer": "a"}, r"row 2: prompt: got 3, wanted a text with words\. Put it in quotes"),
        ({"prompt": "He", "answer": ["a", "b"]}, r"row 2: answer: got \[.*, wanted a text with words"),
    ],
)
def test_a_row_without_its_fields_is_named(tmp_path, row, message):
    (tmp_path / "two.json").write_text(json.dumps([NOTEBOOK[0], row]))
    with pytest.raises(ValueError, match=message):
        read_prompts(str(tmp_path / "two.json"))


def test_a_file_that_is_not_there_is_named_by_its_key(tmp_path):
    with pytest.raises(ValueError, match=r"^ablation\.file: got .*, which cannot be read \(No such file"):
        read_prompts(str(tmp_path / "none.json"))
    with pytest.raises(ValueError, match=r"^file: got x\.txt, wanted a name that ends in \.json, \.jsonl or \.csv"):
        write_prompts("x.txt", [Prompt("a", "b")])
