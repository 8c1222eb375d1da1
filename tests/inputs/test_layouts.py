"""Published layouts: token ids of one tokenizer become words, and the tokens of another model."""

import csv
import json

import pytest
import torch
from helpers.tokenizer_kinds import byte_level, token, tokenizer
from rich.console import Console
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from igap import activation_patching, load_model
from igap.cli.compose import compose_one
from igap.config import PromptsConfig
from igap.errors import InputError
from igap.inputs.layouts import LAYOUTS
from igap.inputs.sources import encode_fitting, encode_pairs, read_prompt_pairs
from igap.models.load import read_header
from igap.output.disk import summarize
from igap.output.run_tables import pair_table
from igap.output.terminal import show
from igap.pipeline import run
from igap.storage.tables import write_csv

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
                        {"capital": "Oslo", "country": "John", "corrupted_capital": "Paris"}),
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
    row = {
        "clean": CLEAN,
        "corrupted": CORRUPTED,
        "correct_idx": named("John"),
        "incorrect_idx": named("Mary"),
        "answer": 3,
    }
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


SINGULAR, PLURAL = ["is", "has", "sees"], ["are", "have", "see"]
VOCABULARY = [
    *SINGULAR, *PLURAL, "give",
    *"cats cat near door The the year lasted from repairs to apples hammers and other fruit fruits tools tool".split(),
    *"0123456789", "17", *(f"{number:02d}" for number in range(100)), ",",
]  # fmt: skip
"""Of "give" there is no singular."""


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The folder of a small GPT-2, and that of a tokenizer with its words in another order; 1700 is a token of both."""
    joined = [("17", "00"), ("17", "43")]
    folder, published = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("ids")
    own = byte_level(VOCABULARY, joined)
    byte_level([*VOCABULARY[100:], *VOCABULARY[:100]], joined).save_pretrained(published)
    config = GPT2Config(vocab_size=len(own), n_embd=32, n_layer=2, n_head=4, n_positions=32, initializer_range=0.3,
                        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    own.save_pretrained(folder)
    return folder, published


def rows_of(published):
    """A row of each layout of answer sets with the words that are right and those that are wrong."""
    ids = AutoTokenizer.from_pretrained(published).get_vocab()
    years = [f"{number:02d}" for number in range(100)]
    return {
        "greater_than": (
            {"clean": "The repairs lasted from the year 1742 to the year 17",
             "corrupted": "The repairs lasted from the year 1701 to the year 17", "correct_idx": 42},
            years[43:], years[:43],
        ),
        "sva": (
            {"clean": "The cats near the door", "corrupted": "The cat near the door", "group": "near", "plural": 1},
            [f"Ġ{verb}" for verb in PLURAL], [f"Ġ{verb}" for verb in SINGULAR],
        ),
        "hypernymy": (
            {"clean": ", apples and other", "h1": "apples", "hypernym": "fruit", "answers": "['fruit', 'fruits']",
             "answers_idx": [ids["Ġfruit"], ids["Ġfruits"]], "corrupted": ", hammers and other", "c1": "hammers",
             "corrupted_hypernym": "tool", "corrupted_answers": "['tools', 'tool']",
             "corrupted_answers_idx": [ids["Ġtools"], ids["Ġtool"]]},
            ["Ġfruit", "Ġfruits"], ["Ġtools", "Ġtool"],
        ),
        "ioi": (
            {"clean": "The cats near the door", "corrupted": "The cat near the door",
             "correct_idx": ids["Ġare"], "incorrect_idx": ids["Ġis"]},
            ["Ġare"], ["Ġis"],
        ),
        "gender_bias": (
            {"clean": "The cats near the door", "corrupted": "The cat near the door",
             "clean_answer_idx": ids["Ġhave"], "corrupted_answer_idx": ids["Ġhas"], "label": 0},
            ["Ġhave"], ["Ġhas"],
        ),
        "capital_country": (
            {"clean": ", apples and", "capital": "", "country": "fruit", "country_idx": ids["Ġfruit"],
             "corrupted": ", hammers and", "corrupted_country_idx": ids["Ġtool"]},
            ["Ġfruit"], ["Ġtool"],
        ),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "further", "column"),
    [
        (("correct_idx", "incorrect_idx"), {"corrupted_hard": "hard"}, "clean"),
        (("country_idx", "corrupted_country_idx"), {"country": "Norway", "corrupted_country": "Mary"}, "country"),
        (("answers_idx", "corrupted_answers_idx"), {"answers": "['tool']", "corrupted_answers": "['Mary']"}, "answers"),
    ],
)
def test_ids_of_another_tokenizer_are_refused_by_the_words_of_the_row_whatever_is_left_out(
    columns, further, column, published, embedded, tmp_path
):
    """As those of published files for other models, which have the same columns and give other words."""
    cells = dict(zip(columns, (named("Tom"), named("Mary")), strict=True))
    file = save(tmp_path, *2 * [{"clean": CLEAN, "corrupted": CORRUPTED, **cells, **further}])
    message = (
        rf"^prompts\.ids_of: got .*, by which an answer is ' Tom', wanted a word of the {column} of row 1 \(line 2\)"
    )
    for skip in (False, True):
        with pytest.raises(InputError, match=message):
            read(file, published, embedded, skip_invalid=skip)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_what_plain_hugging_face_logits_give(layout, other, tmp_path):
    folder, published = other
    row, right, wrong = rows_of(published)[layout]
    own = AutoTokenizer.from_pretrained(folder)
    (pair,) = read(save(tmp_path, row), str(published), own, min_gap=0.0)
    right, wrong = (own.convert_tokens_to_ids(words) for words in (right, wrong))
    plain = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64)
    prompts = [torch.tensor([[own.bos_token_id, *own(row[name])["input_ids"]]]) for name in ("clean", "corrupted")]
    taken = []

    def note(module, given):
        taken.append(given[0])

    def patch(module, given):
        return torch.cat([given[0][..., :8], taken[-1][..., 8:16], given[0][..., 16:]], -1)

    def logits(prompt, hook):
        with torch.no_grad():
            handle = plain.transformer.h[0].attn.c_proj.register_forward_pre_hook(hook)
            last = plain(prompt).logits[0, -1]
            handle.remove()
        return last

    clean, corrupted = (logits(prompt, note) for prompt in prompts)
    patched = logits(prompts[0], patch)
    model = load_model(folder, dtype="float64", processing="raw")
    for metric, of in {
        "logit_diff": lambda logits: logits[right].mean() - logits[wrong].mean(),
        "prob_diff": lambda logits: logits.softmax(-1)[right].sum() - logits.softmax(-1)[wrong].sum(),
    }.items():
        ap = activation_patching(model, pair, metric=metric)
        assert ap.gap == pytest.approx(float(of(clean) - of(corrupted)), abs=1e-9)
        assert ap.effect[0, 1].item() == pytest.approx(float(of(patched) - of(clean)), abs=1e-9)
        assert abs(ap.effect[0, 1]) > 1e-6


@pytest.mark.parametrize(
    ("layout", "cells", "message"),
    [
        ("greater_than", {"correct_idx": "99"}, r"correct_idx: got '99', wanted the last two digits of a year, "),
        ("greater_than", {"correct_idx": "11735"}, r"correct_idx: got '11735', wanted the last two digits"),
        ("greater_than", {"correct_idx": "x"}, r"correct_idx: got 'x', wanted the last two digits"),
        ("sva", {"plural": "2"}, r"plural: got '2', wanted 1 \(plural\) or 0\. Correct it\."),
        ("hypernymy", {"answers_idx": "[]"}, r"answers_idx: got an empty list, wanted at least one token id"),
        ("hypernymy", {"answers_idx": "[5, 5]"}, r"answer: got '.*', the same word as '.*' in its set"),
        ("hypernymy", {"answers_idx": "[5, 6]", "corrupted_answers_idx": "[7, 6]"},
         r"distractor: got '.*', the same word as answer; a word is right or wrong\. Take it out of one set"),
        ("hypernymy", {"answers_idx": "['a']"}, r"answers_idx: got .*, wanted a token id of"),
    ],
)  # fmt: skip
def test_sets_that_cannot_be_are_refused_by_their_row(layout, cells, message, other, tmp_path):
    folder, published = other
    row = rows_of(published)[layout][0]
    file = save(tmp_path, row, {**row, **cells})
    with pytest.raises(InputError, match=rf"^.*data\.csv, row 2 \(line 3\): {message}[^\n]*$"):
        read(file, str(published), AutoTokenizer.from_pretrained(folder))


def test_a_year_below_ten_may_be_written_as_a_number(other, tmp_path):
    row = rows_of(other[1])["greater_than"][0]
    pairs = read(save(tmp_path, *({**row, "correct_idx": year} for year in (1, "01", "00"))), "gpt2")
    assert [(pair.answer[0], pair.distractor) for pair in pairs] == [
        ("02", ("00", "01")), ("02", ("00", "01")), ("01", "00"),
    ]  # fmt: skip


def test_verbs_that_the_model_lacks_are_refused(embedded, other, tmp_path):
    file = save(tmp_path, rows_of(other[1])["sva"][0])
    with pytest.raises(InputError, match=r"plural: got a pair that asks for a verb, but of igap's 125 verbs the tok"):
        read(file, "gpt2", embedded)


def test_a_written_set_is_a_list_in_json_and_in_a_cell(tmp_path):
    texts = {"clean": CLEAN, "corrupted": CORRUPTED, "distractor": " Mary"}
    table = save(tmp_path, {**texts, "answer": [" John", " Tom"]})
    (tmp_path / "data.json").write_text(json.dumps([{**texts, "answer": [" John", " Tom"]}]))
    for file in (table, str(tmp_path / "data.json")):
        (pair,) = read(file, "gpt2")
        assert pair.texts == (CLEAN, CORRUPTED, (" John", " Tom"), " Mary")
        assert pair.further == {}


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
        r"^prompts\.skip_invalid: got .*, none of whose 2 rows fits, .*For example: .*row 1 \(line 2\): corrupted: got"
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
        for skip in (False, True):  # that the tokenizer is missing is nothing about a row
            with pytest.raises(InputError, match=rf"^prompts\.ids_of: got {said}[^\n]*$"):
                read(file, ids_of, skip_invalid=skip)


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
    assert said.startswith("prompts.skip_invalid: 1 of 3 rows do not fit and are left out. For example: ")
    assert "row 2 (line 3): distractor: got ' John', the same word as answer" in said
    assert [pair.further["note"] for pair in result.pairs] == ["n0", "n2"]
    table = pair_table(result, result.spread)
    assert table["note"].tolist() == ["n0", "n2"]
    assert table["gap"].tolist() == list(result.gaps), "a column of the run's own is the run's"
    assert table["file_gap"].tolist() == ["g", "g"]


def test_a_run_of_sets_has_the_difference_of_means_and_its_table_is_a_file_of_pairs(other, tmp_path, capsys):
    folder, published = other
    row, right, wrong = rows_of(published)["sva"]
    two = {"clean": row["corrupted"], "corrupted": row["clean"], "group": "x", "plural": 0}
    asked = [f"prompts.file={save(tmp_path, row, two)}", "model=hf", f"model.name={folder}", "prompts.min_gap=0"]
    few = ["ig.n_steps=3", "sites=heads", "faithfulness=heads", "curves.components='0.1'", "device=cpu"]
    result = run(compose_one([*asked, *few]).config)
    assert result.failures == {}
    assert result.clean_logit_diffs[1] == pytest.approx(-result.corrupted_logit_diffs[0], abs=1e-6)
    table = pair_table(result, result.spread)
    write_csv(tmp_path / "pairs.csv", table)
    again = read(str(tmp_path / "pairs.csv"), "gpt2", min_gap=0.0)
    assert [pair.texts for pair in again] == [pair.texts for pair in result.pairs]
    single = run(compose_one([*asked, *few, "prompts.limit=1", "explain=false"]).config)
    assert json.loads(str(summarize(single)["prompts/answer"])) == [word.replace("Ġ", " ") for word in right]
    show(Console(width=200), single)
    assert f"logit difference {{are, have, see}} - {{{', '.join(w[1:] for w in wrong)}}}: cl" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ending", "header", "good", "bad"),
    [
        ("csv", ["clean,corrupted,answer,distractor"], "John,Mary,Tom,Anna", "John,Mary,Tom"),
        (
            "jsonl",
            [],
            '{"clean": "John", "corrupted": "Mary", "answer": "Tom", "distractor": "Anna"}',
            '{"clean": "John"',
        ),
    ],
)
def test_lines_that_are_no_rows_are_left_out_too_where_that_is_asked_for(tmp_path, embedded, ending, header, good, bad):
    file = tmp_path / f"pairs.{ending}"
    file.write_text("\n".join([*header, good, bad, good]))
    left_out = []
    pairs = read_prompt_pairs(PromptsConfig(file=str(file), skip_invalid=True), embedded, left_out)
    assert [pair.clean for pair in pairs] == ["John"] * 2
    assert [reason.partition(" (line")[0] for reason in left_out] in (
        [f"{file}, row 2"],
        [f"prompts.file: got {file}, row 2"],
    )
    with pytest.raises(InputError, match="row 2"):
        read_prompt_pairs(PromptsConfig(file=str(file)), embedded)
