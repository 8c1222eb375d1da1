"""The commands on a page, its blocks of output, and which lines of these the commands did not print."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]


def commands(page: str) -> list[list[str]]:
    """The words of each igap command in the blocks of bash of a page, without "igap"."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [each[1:] for each in words if each[:1] == ["igap"]]


def blocks(page: str, language: str = "") -> str:
    """The lines of a page's blocks in a language."""
    pairs = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    return "".join(text for each, text in pairs if each == language)


def lines(text: str) -> set[str]:
    """The lines of a text; each loses its margins, times, the time in the name of a run, and the folder it lies in."""
    text = re.sub(r"\S*/?((runs|searches)/)", r"\1", text)
    text = re.sub(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d+", "TIME", text)
    text = re.sub(r"^about \d+ (s|min), ", "about TIME, ", text, flags=re.MULTILINE)
    return {line.strip() for line in text.splitlines()}


def wrong_lines(page: str, printed: str) -> set[str]:
    """The lines of a page's blocks without a language that are none of those printed.

    Three dots stand for lines, or for a part of one, also in brackets. Raises AssertionError where hardly any is there.
    """
    wanted = lines(blocks(page)) - {"...", ""}
    assert len(wanted) > 5, page
    given = lines(printed)
    patterns = {line: ".*".join(map(re.escape, re.split(r"\(\.\.\.\)|\.\.\.", line))) for line in wanted}
    return {
        line
        for line, pattern in patterns.items()
        if line not in given and not ("..." in line and any(re.fullmatch(pattern, each) for each in given))
    }
