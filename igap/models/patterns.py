"""Tokenizer patterns that never end: those that no known model has are tried in a process of their own.

A backtracking regex engine can take longer over one sentence than any run, and Python cannot interrupt it.
"""

import functools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from igap.models.files import damaged_file_error

_SECONDS = 5.0
"""Processor time for the process with all patterns on _TEXTS; an ordinary pattern takes microseconds."""

_TEXTS = (
    "After John and Mary went to the store, Mary gave a bottle of milk to",
    "The war lasted from the year 1732 to the year 17. \"It's what they'd said\" (in 2,048 words)!\n\n\tThen: end?",
    *(character * 40 for character in "aZ0 .\nx_-"),
    "aB 1." * 12,
)
_PATTERN = re.compile(rb'"Regex"\s*:\s*("(?:[^"\\]|\\.)*")')

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
KNOWN = frozenset(
    {
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
        rf"{_LETTERS}\p{{N}}{{1,3}}{_REST}",  # Llama 3
        rf"{_LETTERS}\p{{N}}{_REST}",  # Qwen 2
        r" {2,}",
        r"\s+",
    }
)
"""Patterns of known models, which end. Trying others costs a fifth of a second."""

_TRIAL = """
import json, signal, sys
signal.setitimer(signal.ITIMER_PROF, float(sys.argv[1]))  # by default its signal ends the process
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
patterns, texts = json.load(sys.stdin)
for pattern in patterns:
    print(json.dumps(pattern), flush=True)
    try:
        regex = Regex(pattern)
    except Exception:
        continue
    for text in texts:
        normalizers.Replace(regex, "y").normalize_str(text)
        pre_tokenizers.Split(regex, "isolated").pre_tokenize_str(text)
"""


def check_patterns(folder: Path, name: str) -> None:
    """Raises InputError on a pattern in tokenizer.json that does not end, or fails, on ordinary texts."""
    try:
        content = (folder / "tokenizer.json").read_bytes()
    except FileNotFoundError:
        return  # the tokenizer comes from other files, which have no patterns
    patterns = set()
    for text in _PATTERN.findall(content):
        try:
            patterns.add(json.loads(text))
        except ValueError:  # invalid JSON is rejected where the file is read
            continue
    bad = _find_endless(frozenset(patterns - KNOWN))
    if bad is not None:
        shown = bad if len(bad) <= 80 else f"{bad[:80]}..."
        raise damaged_file_error(
            name, "tokenizer.json", f"its pattern {shown!a} does not end on ordinary texts, or fails"
        )


@functools.lru_cache(maxsize=16)
def _find_endless(patterns: frozenset[str]) -> str | None:
    """Find the first pattern that does not finish _TEXTS in time; None if all do."""
    if not patterns:
        return None
    # -P: no module of the working folder, which may be the checkpoint's.
    command = [sys.executable, "-P", "-c", _TRIAL, str(_SECONDS)]
    request = json.dumps([sorted(patterns), _TEXTS]).encode()
    with tempfile.TemporaryFile() as output:
        trial = subprocess.run(command, input=request, stdout=output, stderr=subprocess.DEVNULL, check=False)
        if trial.returncode == 0:
            return None
        output.seek(0)
        tried: list[str] = [json.loads(pattern) for pattern in output]
    if not tried:  # the machine is at fault, for example without memory
        raise OSError(f"{sys.executable}, which was to try the patterns of a tokenizer, did not start")
    return tried[-1]
