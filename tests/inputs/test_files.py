"""Files of pairs: the three formats say the same, and what is wrong is named with its row."""

import csv
import json
import os

import pytest
from helpers import hostile_values

from igap.config import TEXTS
from igap.errors import InputError
from igap.inputs.files import read_pairs

ROWS = [
    {"clean": 'Then, "John" and é went', "corrupted": "Then\nMary went", "answer": " John", "distractor": " Mary"},
    {"clean": "b\u2028c", "corrupted": "d", "answer": " e", "distractor": " f"},
]


def save(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def csv_text(folder, rows):
    path = folder / "made.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["answer", "distractor", "clean", "corrupted"])
        writer.writeheader()
        writer.writerows(rows)
    return path.read_bytes()


def test_json_json_lines_and_csv_give_the_same_rows_with_their_spaces(tmp_path):
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    for name, text in {
        "a.json": json.dumps(ROWS),
        "a.jsonl": lines + "\n\n",
        "b.jsonl": lines.replace("\n\n", "\r\n"),
        "a.csv": csv_text(tmp_path, ROWS),
        "b.csv": b"\xef\xbb\xbf" + csv_text(tmp_path, ROWS) + b"\r\n,,,\r\n",
        "c.CSV": csv_text(tmp_path, ROWS),
    }.items():
        assert list(read_pairs(save(tmp_path, name, text)).values()) == ROWS, name


GOOD = {"clean": "a", "corrupted": "b", "answer": "c", "distractor": "d"}
HEADER = ",".join(TEXTS)

BAD = [
    ("a.txt", "", r"prompts\.file: got .*a\.txt, wanted a name that ends in .*own tasks .*\. Rename"),
    ("a.csv", b"\xff\xfe", r"prompts\.file: got .*a\.csv, which is no UTF-8 text \(.*\)\. Save it as UTF-8\."),
    ("a.csv", "", r"prompts\.file: got .*a\.csv, which holds no row, wanted at least one\. Add some\."),
    ("a.csv", HEADER, r"a\.csv, which holds no row"),
    ("a.json", "[]", r"a\.json, which holds no row"),
    ("a.jsonl", "\n", r"a\.jsonl, which holds no row"),
    ("a.json", "[1", r"prompts\.file: got .*a\.json, which is no JSON \(.*line 1 column 3.*\)\. Correct it\."),
    ("a.json", "[" * 100_000, r"a\.json, which is no JSON \("),
    ("a.json", json.dumps(GOOD), r"a\.json, whose JSON is \{.*\.\.\., wanted a list of objects\. Put them in brackets"),
    ("a.json", json.dumps([GOOD, "x"]), r"^.*a\.json, row 2: got \"x\", wanted the fields clean, corrupted, "),
    ("a.jsonl", json.dumps(GOOD) + "\n\n{", r"prompts\.file: got .*a\.jsonl, row 2 \(line 3\), which is no JSON \("),
    ("a.jsonl", json.dumps({**GOOD, "answer": 3}), r"a\.jsonl, row 1 \(line 1\): answer: got 3, wanted a text .*Put"),
    ("a.json", json.dumps([{**GOOD, "clean": None}]), r"a\.json, row 1: clean: got null, wanted a text with words"),
    ("a.csv", f"{HEADER}\na,b,c,d\na,b, ,d", r"a\.csv, row 2 \(line 3\): answer: got \" \", wanted a text with words"),
    ("a.csv", f"{HEADER}\na,b,c", r"a\.csv, row 1 \(line 2\): got 3 cells, wanted 4, one for each of clean, "),
    ("a.csv", f"{HEADER}\na,b,c,d\na, b,c,d,e", r"a\.csv, row 2 \(line 3\): got 5 cells, .*Put a text that holds"),
    ("a.csv", f'{HEADER}\n"a,b,c,d', r"prompts\.file: got .*a\.csv, which is no CSV: a quote that line 2 opens"),
    ("a.csv", "clean,corrupted,answer\na,b,c,d", r"a\.csv, line 1: .*, wanted at least .*\. Add distractor\.$"),
    ("a.csv", "clean,corrupted,correct,incorrect_idx\na,b,1,2", r"a\.csv, line 1: .*, wanted at least clean, .*\. "),
    ("a.csv", "\nclean,corrupted,answer,distracter\na,b,c,d", r"a\.csv, line 2: .*\. Rename distracter to dis"),
    ("a.csv", "clean,clean,answer,distractor\na,b,c,d", r"a\.csv, line 1: got the field clean twice, wanted "),
    ("a.jsonl", '{"clean": "a", "clean": "b"}', r"a\.jsonl, row 1 \(line 1\): got the field clean twice"),
    ("a.json", "[{}]", r"a\.json, row 1: got the fields none, wanted at least"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "message"), BAD)
def test_what_is_wrong_is_named_in_one_line(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message) as refused:
        read_pairs(save(tmp_path, name, text))
    assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"prompts\.file: got no\.csv, which cannot be read \(No such file or directory\)"
    ):
        read_pairs("no.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ValueError, match=r"folder\.csv, which cannot be read \(it is a folder, no file\)"):
        read_pairs(str(tmp_path / "folder.csv"))


@pytest.mark.parametrize("kind", hostile_values.PROMPT_FILES)
def test_what_people_save_by_mistake_is_told_for_what_it_is(kind, tmp_path):
    suffix, content, message = hostile_values.PROMPT_FILES[kind]
    with pytest.raises(InputError, match=message) as told:
        read_pairs(save(tmp_path, f"pairs{suffix}", content))
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 600


@pytest.mark.parametrize("text", [' "quoted"', ' "', '"', "a, b", "'=1", "a\nb", " ''"])
def test_texts_with_quotes_and_blanks_of_their_own_are_read_as_they_are(text, tmp_path):
    row = {"clean": text, "corrupted": "b", "answer": text, "distractor": text}
    assert list(read_pairs(save(tmp_path, "a.csv", csv_text(tmp_path, [row]))).values()) == [row]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_any_end_of_line_and_the_mark_of_utf_8_are_read(ending, mark, tmp_path):
    text = mark + ending.join([HEADER, "a,b,c,d", ""])
    assert list(read_pairs(save(tmp_path, "a.csv", text.encode())).values()) == [GOOD]


def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    for name in ("pipe.csv", "zero.csv"):
        with pytest.raises(InputError, match=rf"{name}, which cannot be read \(it is a (named pipe|device), no file\)"):
            read_pairs(str(tmp_path / name))


def test_a_name_with_a_line_break_is_shown_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"a\\nb\.csv, which holds no row") as told:
        read_pairs(save(tmp_path, "a\nb.csv", ""))
    assert "\n" not in str(told.value)


def test_other_columns_and_the_index_that_pandas_writes_stand_beside_those_of_a_pair(tmp_path):
    table = save(tmp_path, "a.csv", f",{HEADER},note,group\n7,a,b,c,d,,g\n8,a,b,c,d,n,\n")
    assert list(read_pairs(table).values()) == [{**GOOD, "note": "", "group": "g"}, {**GOOD, "note": "n", "group": ""}]
    lists = save(tmp_path, "a.json", json.dumps([{**GOOD, "note": None, "group": [1, "é"], "n": 3}]))
    assert list(read_pairs(lists).values()) == [{**GOOD, "note": "", "group": '[1, "é"]', "n": "3"}]
    with pytest.raises(InputError, match=r"a\.json, row 1: note: got .*half of a character"):
        read_pairs(save(tmp_path, "a.json", json.dumps([{**GOOD, "note": "\ud800"}])))
    with pytest.raises(InputError, match=r"a\.csv, row 1 \(line 2\): got 4 cells, wanted 5, one for each of clean, "):
        read_pairs(save(tmp_path, "a.csv", f",{HEADER}\na,b,c,d"))
