"""Values that no user means well with, by kind: texts, numbers, grids, file names, files of prompts.

For tests of the kinds, and for programs that draw from them. Nothing here imports igap.
"""

import json

TEXTS = (
    "1234567", "2024", "007", "0x10", "1_000", "1e5", "-1", "+1", ".5", "1.", "9.10", "inf", "nan", "true", "False",
    "yes",
    "no", "on", "Null", "~", "None", "2024-01-31", "12:30", "a, b", "a=b", "[a]", "[", "]", "{a: b}", "{", "}", "(",
    "a)",
    "a: b", "# no comment", "a #b", "%d %s", "$HOME", "${seed}", "\\${seed}", "${nope}", "${oc.env:HOME}", "it's",
    'say "so"', "'", '"',
    "\\", "a\\", "a\\'b", "choice(a", "nope(1)", "range(1,3)", "interval(0,1)", "a\nb", "a\tb", " a", "a ", "-m",
    "--help",
    "é", "e\u0301", "木", "🙂", "👩\u200d🔬", "\u202eabc", "\u00a0a", "@", "!", "&a", "*a", "|", ">", "`a`", "a;b",
)  # fmt: skip
"""What a person may type, and a parser of numbers, lists, YAML or shells would read as something else."""

NUMBERS = (
    "0", "-1", "1e9", "1e400", "-1e400", "nan", "inf", "1e-400", "0x10", "true", "null", "", "[]", "[1]", "{}",
    "'1'", "ten",
    str(2**31), str(2**63), str(2**64), "9" * 400, "9" * 5000, "0." + "0" * 400 + "1",
)  # fmt: skip
"""In place of a number, as typed."""

GRID_OVERRIDES = (
    "seed=range(1,100000000)", "seed=range(1,1e9)", "seed=range(0,1,1e-300)", "seed=shuffle(range(1,100000000))",
    "seed=sort(range(1,100000000))", "seed=range(1,5,0)", "seed=range(0,nan)", "seed=range(0,inf)", "seed=range(5,1)",
    "seed=glob(*)", "seed=interval(0,1)", "seed=choice()", "seed=sort(1,a)", "seed=tag(a)", "seed=shuffle()",
    "seed=int(a)",
    "seed=nope(1)", "seed=[1,2", "seed=1]", "seed={1", "seed='1", "seed=${nope}", "seed=${oc.env:NOPE_}", "seed=${",
    "seed=" + "[" * 5000, "seed=" + "1," * 20_000 + "1", "baseline=glob(nope*)", "baseline=interval(0,1)",
    "baseline=nope",
    "baseline=null", "sweep=a,b", "nope=1", "nope/a=b", "=1", "ig..n_steps=1", "~ig.n_steps", "+seed=1",
    "hydra/launcher=nope", "hydra.launcher=null", "hydra.launcher=5", "hydra.launcher._target_=nope.Nope",
    "hydra.launcher._target_=os.system", "hydra.launcher._target_=null", "hydra.sweeper._target_=nope.Nope",
    "hydra/sweeper=nope", "hydra.nope=5", "hydra=5", "hydra.searchpath=5",
    "hydra.searchpath=[nope]", "hydra.job.chdir=perhaps",
)  # fmt: skip
"""Of a multirun: grids that are too large, that are none, and settings of Hydra's that cannot be."""

FILE_NAMES = (
    "a b", " a", "a ", "a,b", "a=b", "it's", 'say "so"', "[a]", "[a", "a]", "(a)", "{a}", "{a", "a\\b", "a\\",
    "\\'", "$HOME",
    "${seed}", "${nope}", "#a", "a#b", "%d", "50%", "a\nb", "a\tb", "-a", "--help", "a:b", "a;b", "a&b", "a|b",
    "a*b", "a?b",
    "~a", "@a", "!a", "é", "e\u0301", "木", "🙂", "null", "true", "007", "1e5", "choice(a)", "choice(a,b)", "'a'",
    '"a"', "...",
)  # fmt: skip
"""Names that file systems take: without a suffix."""

_GOOD = {"clean": "a", "corrupted": "b", "answer": "c", "distractor": "d"}
_HEADER = ",".join(_GOOD)
_ROW = "a,b,c,d\n"

PROMPT_FILES: dict[str, tuple[str, bytes, str]] = {
    name: (suffix, text if isinstance(text, bytes) else text.encode(), message)
    for name, suffix, text, message in [
        ("empty", ".csv", "", "holds no row"),
        ("blank lines", ".csv", " \n\n", "holds no row"),
        ("header alone", ".csv", _HEADER, "holds no row"),
        ("no header", ".csv", "Then A,Then B,C,D\n", "line 1: got .*, wanted the columns' names"),
        ("a column without a name", ".csv", f"{_HEADER},\n{_ROW[:-1]},\n",
         "line 1: got a column without a name after distractor"),
        ("semicolons", ".csv", f"{_HEADER}\n{_ROW}".replace(",", ";"), "line 1: got columns separated by semicolons"),
        ("tabs", ".csv", f"{_HEADER}\n{_ROW}".replace(",", "\t"), "line 1: got columns separated by tabs"),
        ("bars", ".csv", f"{_HEADER}\n{_ROW}".replace(",", "|"), "line 1: got columns separated by bars"),
        ("a line for a spreadsheet", ".csv", f"sep=,\n{_HEADER}\n{_ROW}", 'line 1: got "sep=", .*Remove the line'),
        ("blanks before quotes", ".csv", f'{_HEADER}\n"a, b", "b", "c", "d"\n',
         "line 2: got a blank between a comma and a"),
        ("a tab before quotes", ".csv", f'{_HEADER}\na,\t"b, c",d\n',
         "line 2: got a blank between a comma and a quote"),
        ("UTF-16", ".csv", f"{_HEADER}\n{_ROW}".encode("utf-16"), r"no UTF-8 text \(its mark says UTF-16\)"),
        ("UTF-16 without a mark", ".csv", f"{_HEADER}\n{_ROW}".encode("utf-16-le"), "a NUL byte in line 1"),
        ("Latin-1", ".csv", f"{_HEADER}\n{_ROW}é,b,c,d\n".encode("latin-1"),
         r"\(byte 0xe9 in line 3\)\. Save it as UTF-8"),
        ("NUL", ".csv", f"{_HEADER}\na,\0,c,d\n", r"\(a NUL byte in line 2\)"),
        ("unclosed quote", ".csv", f'{_HEADER}\n{_ROW}"a,b,c,d\n{_ROW}', "a quote that line 3 opens is never closed"),
        ("text after a quote", ".csv", f'{_HEADER}\n"a"b,b,c,d\n', "text after the closing quote in line 2"),
        ("too few cells", ".csv", f"{_HEADER}\n{_ROW}a,b,c\n", r"row 2 \(line 3\): got 3 cells, wanted 4"),
        ("too many cells", ".csv", f"{_HEADER}\n\n{_ROW}a,b,c,d,e\n", r"row 2 \(line 4\): got 5 cells, wanted 4"),
        ("a name twice", ".csv", f"clean,{_HEADER}\na,{_ROW}", "line 1: got the field clean twice"),
        ("capitals", ".csv", f"{_HEADER.title()}\n{_ROW}", "Rename Clean to clean"),
        ("an endless cell", ".csv", f"{_HEADER}\n{'a' * 200_000},b,c,d\n", "field larger than field limit .*line 2"),
        ("one object", ".json", json.dumps(_GOOD), r"wanted a list of objects\. Put them in brackets"),
        ("columns", ".json", json.dumps({key: [text] for key, text in _GOOD.items()}), "Save it row by row"),
        ("a list within", ".json", json.dumps({"data": [_GOOD]}), "Save the list data alone"),
        ("a number", ".json", "5", "whose JSON is 5, wanted a list of objects"),
        ("null", ".json", "null", "whose JSON is null, wanted a list of objects"),
        ("lists", ".json", json.dumps([list(_GOOD.values())]), r"row 1: got \[.*\], wanted the fields"),
        ("lines", ".json", json.dumps(_GOOD) + "\n" + json.dumps(_GOOD), "Extra data.* is named .jsonl"),
        ("a number for a text", ".json", json.dumps([{**_GOOD, "answer": 3}]), "answer: got 3, .*Put it in quotes"),
        ("null for a text", ".json", json.dumps([{**_GOOD, "answer": None}]), "answer: got null, .*Fill it in"),
        ("a list for a text", ".json", json.dumps([{**_GOOD, "clean": ["c"]}]), r"clean: got \[.*Write a text"),
        ("an empty set", ".json", json.dumps([{**_GOOD, "answer": []}]), r"answer: got \[\], wanted a text"),
        ("a set of numbers", ".json", json.dumps([{**_GOOD, "answer": [" c", 3]}]), r"answer: got \[.*wanted a text"),
        ("half a character", ".json", json.dumps([{**_GOOD, "answer": "\ud800"}]), "half of a character"),
        ("many brackets", ".json", "[" * 100_000, "which is no JSON"),
        ("many brackets that close", ".json", "[" * 900 + "]" * 900, "row 1: got"),
        ("many digits", ".json", "[" + "9" * 5000 + "]", "which is no JSON .*5000 digits"),
        ("a broken line", ".jsonl", json.dumps(_GOOD) + "\n\n{a\n", r"row 2 \(line 3\), which is no JSON"),
        ("a list over lines", ".jsonl", json.dumps([_GOOD], indent=1), "Write one whole object a line"),
        ("no suffix", "", "a", "wanted a name that ends in"),
        ("another suffix", ".parquet", "a", "wanted a name that ends in"),
    ]
}  # fmt: skip
"""Files of prompt pairs that cannot be read, by what is wrong: suffix, content, what the message says (a pattern)."""
