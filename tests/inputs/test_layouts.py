"""Published layouts: token ids of one tokenizer become words, and the tokens of another model."""

import csv
import json

import pytest
from helpers.tokenizer_kinds import token, tokenizer

from igap.cli.compose import compose_one
from igap.config import PromptsConfig
from igap.errors import InputError
from igap.inputs.sources import encode_fitting, encode_pairs, read_prompt_pairs
from igap.models.load import read_header
from igap.output.disk import pair_table, summarize
from igap.pipeline import run

CLEAN = "After John and Mary went to the store, Mary gave a bottle of milk to"
CORRUPTED = CLEAN.replace("Mary gave", "John gave")
KNOWN = {"prepend_bos": False, "n_ctx": None, "n_vocab": None}


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A folder with a tokenizer like GPT-2's, whose ids are not those of the models."""
    folder = tmp_path_factory.mktemp("published")
    tokenizer("byte_level").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def embedded():
    return read_header("ioi-mini").tokenizer


def named(word):
    return token("byte_level", f" {word}")


def save(folder, *rows, name="data.csv"):
    path = folder / name
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({key: json.dumps(cell) if isinstance(cell, list) else cell for key, cell in row.items()}
                         for row in rows)  # fmt: skip
    return str(path)


def read(file, ids_of, tokenizer=None, **more):
    return read_prompt_pairs(PromptsConfig(file=file, ids_of=ids_of, **more), tokenizer)


ONE_EACH = {
    "ioi": ("correct_idx", "incorrect_idx", {"corrupted_hard": "hard"}),
    "gender_bias": ("clean_answer_idx", "corrupted_answer_idx", {"label": "0"}),
    "capital_country": ("country_idx", "corrupted_country_idx",
                        {"capital": "Oslo", "country": "Norway", "corrupted_capital": "Paris"}),
}  # fmt: skip


@pytest.mark.parametrize("layout", ONE_EACH)
@pytest.mark.parametrize("index", [{}, {"": 3}])
def test_ids_of_a_published_tokenizer_are_words_and_then_the_models_own_tokens(
    layout, index, published, embedded, tmp_path
):
    right, wrong, further = ONE_EACH[layout]
    row = {**index, "clean": CLEAN, "corrupted": CORRUPTED, right: named("John"), wrong: named("Mary"), **further}
    (pair,) = read(save(tmp_path, row), published)
    assert pair.texts == (CLEAN, CORRUPTED, " John", " Mary")
    assert pair.further == {right: str(named("John")), wrong: str(named("Mary")), **further}
    (tokens,) = encode_pairs(PromptsConfig(file="a.csv"), (pair,), embedded, **KNOWN)
    assert [embedded.decode([one]) for one in (tokens.answer, tokens.distractor)] == ["John", "Mary"]
    assert tokens.answer != named("John")


def test_a_layout_in_json_has_numbers(published, tmp_path):
    row = {"clean": CLEAN, "corrupted": CORRUPTED, "correct_idx": named("John"), "incorrect_idx": named("Mary")}
    (tmp_path / "data.jsonl").write_text(json.dumps(row))
    (pair,) = read(str(tmp_path / "data.jsonl"), published)
    assert pair.texts[2:] == (" John", " Mary")


@pytest.mark.parametrize("kind", ["llama2", "byte_level", "metaspace"])
def test_the_space_before_a_word_survives_tokenizers_that_take_it_off_a_text(kind, tmp_path):
    tokenizer(kind).save_pretrained(tmp_path / "it")
    row = {"clean": CLEAN, "corrupted": CORRUPTED,
           "correct_idx": token(kind, " John"), "incorrect_idx": token(kind, "17")}  # fmt: skip
    (pair,) = read(save(tmp_path, row), str(tmp_path / "it"))
    assert pair.texts[2:] == (" John", "17")


BAD = {
    "no number": ("John", r"correct_idx: got 'John', wanted a token id of .*published.*, 0 to \d+\. Set prompts\.ids"),
    "no token": (10**6, r"correct_idx: got 1000000, wanted a token id"),
    "a negative id": (-1, r"correct_idx: got -1, wanted a token id"),
    "a fraction": (1.0, r"correct_idx: got 1\.0, wanted a token id"),
    "no word": ("space", r"correct_idx: got \d+, which is ' ' in .*published.*, wanted the token of a word\. Cor"),
    "a word that the model lacks": ("17", r"answer: the tokenizer does not know '17'"),
    "an empty cell": ("", r'correct_idx: got "", wanted a text with words\. Fill it in\.'),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_what_does_not_survive_is_refused_by_its_row_or_left_out(kind, published, embedded, tmp_path, monkeypatch):
    cell, message = BAD[kind]
    cell = {"space": token("byte_level", " "), "17": token("byte_level", "17")}.get(cell, cell)
    good = {"clean": CLEAN, "corrupted": CORRUPTED, "correct_idx": named("John"), "incorrect_idx": named("Mary")}
    file = save(tmp_path, good, {**good, "correct_idx": cell}, good, good)
    with pytest.raises(InputError, match=rf"^.*data\.csv, row 2 \(line 3\): {message}") as refused:
        encode_pairs(PromptsConfig(file=file), read(file, published), embedded, **KNOWN)
    for limit, n, n_out in ((None, 3, 1), (3, 2, 1), (1, 1, 0)):
        prompts, left_out = PromptsConfig(file=file, ids_of=published, skip_invalid=True, limit=limit), []
        pairs = read_prompt_pairs(prompts, embedded, left_out)
        pairs, tokens = encode_fitting(prompts, pairs, embedded, left_out, **KNOWN)
        assert [pair.place.split("row ")[1][0] for pair in pairs] == ["1", "3", "4"][:n]
        assert len(tokens) == n
        assert left_out == [str(refused.value)] * n_out


def test_a_file_of_which_nothing_fits_is_refused_also_where_rows_may_be_left_out(published, embedded, tmp_path):
    row = {"clean": CLEAN, "corrupted": CLEAN, "correct_idx": named("John"), "incorrect_idx": named("Mary")}
    prompts, left_out = PromptsConfig(file=save(tmp_path, row, row), ids_of=published, skip_invalid=True), []
    pairs = read_prompt_pairs(prompts, embedded, left_out)
    message = (
        r"^prompts\.skip_invalid: got .*, none of whose 2 rows fits, .*The first: .*row 1 \(line 2\): corrupted: got"
    )
    with pytest.raises(InputError, match=message + r" the same text as clean [^\n]*$"):
        encode_fitting(prompts, pairs, embedded, left_out, **KNOWN)


def test_a_tokenizer_that_is_not_there_is_refused_with_what_to_do(tmp_path):
    row = {"clean": CLEAN, "corrupted": CORRUPTED, "correct_idx": 11735, "incorrect_idx": 4186}
    file = save(tmp_path, row)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    for ids_of, said in (
        (
            "gpt2",
            r"'gpt2', whose tokenizer is not on this machine: .*Copy its tokenizer\.json here and name the folder",
        ),
        (
            str(tmp_path / "empty"),
            r".*empty', whose tokenizer cannot be read \(it has none of tokenizer\.json, .*\)\. Na",
        ),
        (str(tmp_path / "broken"), r".*broken', whose tokenizer cannot be read \(.*\)\. Name a folder with its tok"),
    ):
        with pytest.raises(InputError, match=rf"^prompts\.ids_of: got {said}[^\n]*$"):
            read(file, ids_of)


@pytest.mark.parametrize("override", ["prompts.skip_invalid=true", "prompts.ids_of=ioi-mini"])
def test_settings_of_a_files_rows_need_a_file(override):
    with pytest.raises(ValueError, match=r"^prompts\.\w+: got [\w-]+ without a file, wanted prompts\.file, [^\n]*$"):
        compose_one([override])


def test_a_run_says_how_many_rows_it_left_out_and_keeps_other_columns(published, tmp_path):
    good = {"clean": CLEAN, "corrupted": CORRUPTED, "correct_idx": named("John"), "incorrect_idx": named("Mary")}
    rows = [{**good, "note": f"n{i}", "gap": "g"} for i in range(3)]
    rows[1]["incorrect_idx"] = named("John")
    file = save(tmp_path, *rows)
    asked = [f"prompts.file={file}", f"prompts.ids_of={published}", "prompts.skip_invalid=true"]
    config = compose_one([*asked, "sites=heads", "ig.n_steps=2", "explain=false", "curves.components=none"]).config
    result = run(config)
    summary = summarize(result)
    assert (summary["n_pairs"], summary["n_left_out"]) == (2, 1)
    (said,) = [line for line in str(summary["warnings"]).split("\n") if "skip_invalid" in line]
    assert said.startswith("prompts.skip_invalid: 1 of 3 rows do not fit and are left out. The first: ")
    assert "row 2 (line 3): distractor: got ' John', the same word as answer" in said
    assert [pair.further["note"] for pair in result.pairs] == ["n0", "n2"]
    table = pair_table(result, result.spread)
    assert table["note"].tolist() == ["n0", "n2"]
    assert table["gap"].tolist() == list(result.gaps), "a column of the run's own is the run's"
