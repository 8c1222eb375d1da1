"""igap's words, templates and tasks in the tokens of the real GPT-2, as the data file beside this has them."""

import json
import runpy
import sys
from functools import cached_property

import pytest
from helpers.gpt2_tokens import FILE, LISTS, cut, pieces

from igap.config import PromptsConfig
from igap.inputs.sources import encode_pairs, read_prompt_pairs
from igap.inputs.tokenizing import single_tokens
from igap.inputs.words import NAMES, SEVERAL_TOKENS


class Gpt2:
    """GPT-2's tokenizer as far as the file knows it."""

    unk_token_id = bos_token_id = 0

    @cached_property
    def tokens(self):
        found = json.loads(FILE.read_text())
        return {piece: [piece] for piece in found["single"]} | found["several"]

    @cached_property
    def vocabulary(self):
        return ["<|endoftext|>", *sorted({token for tokens in self.tokens.values() for token in tokens})]

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [self.vocabulary.index(token) for piece in cut(text) for token in self.tokens[piece]]}

    def decode(self, ids):
        return "".join(self.vocabulary[i] for i in ids)


@pytest.fixture(scope="module")
def gpt2():
    return Gpt2()


def test_the_file_knows_all_pieces_of_igaps_texts_and_no_others(gpt2):
    assert sorted(gpt2.tokens) == pieces()
    assert all("".join(tokens) == piece for piece, tokens in gpt2.tokens.items())


def test_words_of_the_lists_are_single_tokens_after_a_space_or_marked(gpt2):
    words = {word for one in LISTS for text in one for word in text.split()}
    assert {word for word in words if len(gpt2.tokens[f" {word}"]) > 1} == SEVERAL_TOKENS


def test_every_name_may_be_generated(gpt2):
    assert single_tokens(gpt2, NAMES) == list(NAMES)


@pytest.mark.parametrize(
    ("task", "n"), [("capital-country", 32), ("gendered-pronoun", 30), ("greater-than", 30), ("subject-verb", 30)]
)
def test_every_pair_of_a_task_is_one_for_gpt2(gpt2, task, n):
    prompts = PromptsConfig(file=task)
    tokens = encode_pairs(prompts, read_prompt_pairs(prompts, gpt2), gpt2, prepend_bos=True, n_ctx=1024, n_vocab=50257)
    assert len(tokens) == n
    assert not any(one.cautions for one in tokens)
    if task == "greater-than":
        for one in tokens:
            century, start = one.clean_words[-1], one.clean_words[-5]
            assert (century, len(start)) == (one.clean_words[-6], 2), "years are century and two digits"
            last, earlier = (int(gpt2.decode([token])) for token in (one.answer, one.distractor))
            assert int(one.corrupted_words[-5]) < earlier < int(start) < last


def test_the_program_says_which_pieces_are_one_token_of_a_vocabulary(tmp_path, monkeypatch):
    letters = sorted({letter.replace(" ", "Ġ") for piece in pieces() for letter in piece})
    merges = [("Ġ", "J"), ("ĠJ", "o"), ("ĠJo", "h"), ("ĠJoh", "n")]
    vocabulary = {token: i for i, token in enumerate([*letters, *(a + b for a, b in merges)])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    program = tmp_path / FILE.with_suffix(".py").name
    program.write_text(FILE.with_suffix(".py").read_text())
    monkeypatch.setattr(sys, "argv", [str(program), str(tmp_path)])
    runpy.run_path(str(program), run_name="__main__")
    found = json.loads((tmp_path / FILE.name).read_text())
    assert " John" in found["single"]
    assert found["several"][" Mary"] == [" ", "M", "a", "r", "y"]
    assert sorted([*found["single"], *found["several"]]) == pieces()
