"""Files, JSON and text that others may have written: read within bounds, or refused with a reason in one line."""

import json
import os

import pytest
from helpers.damaged_results import HUGE, NAMES, VALUES

from igap.errors import printable
from igap.storage import untrusted
from igap.storage.untrusted import check_file, is_text, parse_json, read_json_object, read_lines, read_text

NO_VALUES = (
    "400 digits", "5,000 digits", "1e999", "NaN", "-Infinity", "a lone surrogate", "nested 100,000 deep",
    "nested 400 deep",
)  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("place", ["{}", '{{"a": {}}}', "[1, {}]"])
def test_json_is_plain_values_or_one_line(name, place):
    text = place.format(VALUES[name])
    if name not in NO_VALUES:
        assert parse_json(text) == json.loads(text)
        return
    with pytest.raises(ValueError, match=r"\w") as caught:
        parse_json(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize("name", NAMES)
def test_names_are_texts_and_there_once(name):
    text = f"{{{NAMES[name]}: 1, {NAMES[name]}: 2}}"
    with pytest.raises(ValueError, match=r"is there twice|half of a surrogate pair"):
        parse_json(text)


@pytest.mark.parametrize("depth", [40, 60])
def test_fifty_lists_inside_each_other_are_enough(depth):
    for opened, closed in (("[", "]"), ('{"a":', "}")):
        text = opened * depth + "1" + closed * depth
        if depth < 50:
            assert parse_json(text) == json.loads(text)
        else:
            with pytest.raises(ValueError, match="nested more than 50 deep"):
                parse_json(text)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "it is a named pipe, no file"),
        (os.mkdir, "it is a folder, no file"),
        (lambda path: path.symlink_to("/dev/zero"), "it is a device, no file"),
        (lambda path: path.symlink_to("gone"), "No such file or directory"),
        (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
        (lambda path: (path.touch(), os.truncate(path, HUGE)), "it has 10,737,418,240 bytes, more than 67,108,864"),
        (lambda path: path.write_bytes(b"abc\xff"), "it is no UTF-8 text, at byte 3"),
        (lambda path: None, "No such file or directory"),
    ],
)
def test_what_is_no_file_of_text_is_refused_without_waiting(make, reason, tmp_path):
    path = tmp_path / "file"
    make(path)
    with pytest.raises(ValueError, match=reason):
        read_text(path)


def test_a_file_is_read_to_its_end(tmp_path):
    (tmp_path / "file").write_bytes("é\r\n\ufeff".encode())
    assert read_text(tmp_path / "file") == "é\r\n\ufeff"
    assert check_file(tmp_path / "file") == 7
    assert check_file(tmp_path / "file", 7) == 7
    with pytest.raises(ValueError, match="more than 6"):
        check_file(tmp_path / "file", 6)


def test_lines_are_read_one_by_one_to_the_last_that_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes("é\r\n\n".encode())
    monkeypatch.setattr(untrusted, "LARGEST", 1)  # no bound of a table
    assert list(read_lines(path)) == ["é\r\n", "\n"]
    path.write_bytes(b"a\nb")
    lines = read_lines(path)
    assert next(lines) == "a\n"
    with pytest.raises(ValueError, match=r"^its last line has no end: it has been cut$"):
        next(lines)
    monkeypatch.setattr(untrusted, "_LONGEST_LINE", 1)
    with pytest.raises(ValueError, match=r"^a line has more than 1 bytes$"):
        next(read_lines(path))
    monkeypatch.undo()
    path.write_bytes(b"a\n\xff\n")
    with pytest.raises(ValueError, match=r"^it is no UTF-8 text, at byte 2$"):
        list(read_lines(path))
    os.truncate(path, HUGE)
    with pytest.raises(ValueError, match=r"more than 1,073,741,824$"):
        next(read_lines(path))


def test_names_are_wanted_where_there_is_a_list(tmp_path):
    (tmp_path / "file").write_text("[1]")
    with pytest.raises(ValueError, match="it holds list, wanted names and values"):
        read_json_object(tmp_path / "file")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("After John, é 😀", "After John, é 😀"),
        ("a\nb\x1b[31m\x00\x9b", r"a\nb\x1b[31m\x00\x9b"),
        ("\u202eabc\u2066", r"\u202eabc\u2066"),
        ("\udcff", r"\udcff"),
        ("x" * 301, "x" * 299 + "…"),
        ("x" * 300, "x" * 300),
        (5, "5"),
    ],
)
def test_a_text_is_shown_in_one_line_that_moves_nothing(text, shown):
    assert printable(text) == shown


def test_a_name_that_is_no_utf8_is_no_text(tmp_path):
    assert is_text(tmp_path / "é")
    assert not is_text(tmp_path / os.fsdecode(b"\xff"))


def test_the_limit_of_a_text_is_far_above_what_a_sweep_of_100000_jobs_writes():
    assert len(json.dumps([{"key": 12 * "x", "overrides": [60 * "x", 60 * "x"]}])) * 100_000 < untrusted.LARGEST
