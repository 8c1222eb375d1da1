"""How GPT-2 cuts igap's words: `python tests/datasets/gpt2_tokens.py FOLDER` writes the data file beside it.

FOLDER holds GPT-2's vocabulary: vocab.json and merges.txt, which some packages call encoder.json and vocab.bpe.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import ByteLevelBPETokenizer

from igap.inputs import words
from igap.inputs.files import read_pairs, task_names
from igap.inputs.ioi import TEMPLATES

FILE = Path(__file__).with_suffix(".json")
LISTS = (words.NAMES, words.PLACES, words.OBJECTS, words.VERBS, words.ANIMALS)
_PIECE = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[^\W\d_]+| ?\d+| ?[^\s\w]+|\s+")  # GPT-2 merges within these only


def cut(text: str) -> list[str]:
    """The pieces of a text that GPT-2's tokens never reach over."""
    return _PIECE.findall(text)


def _texts() -> Iterator[str]:
    yield from (f" {word}" for one in LISTS for word in one)
    yield from (*words.NAMES, *words.ANIMALS)  # at the start of a prompt
    fills = {"first": "John", "second": "Mary", "subject": "Mary", "place": "store", "verb": "gave"}
    yield from (template.format(**fills, object="ring", other="ball") for template in TEMPLATES)
    for row in (row for task in task_names() for row in read_pairs(task).values()):
        yield from (row[prompt] + row[word] for prompt in ("clean", "corrupted") for word in ("answer", "distractor"))
        yield from (row["clean"], row["corrupted"])


def pieces() -> list[str]:
    """All pieces of igap's words, templates and tasks, in order."""
    return sorted({piece for text in _texts() for piece in cut(text)})


def main(folder: Path) -> None:
    """Writes the file."""
    names = ("vocab.json", "merges.txt") if (folder / "vocab.json").exists() else ("encoder.json", "vocab.bpe")
    tokenizer = ByteLevelBPETokenizer(*(str(folder / name) for name in names))
    tokens = {piece: tokenizer.encode(piece).tokens for piece in pieces()}
    several = {piece: [one.replace("Ġ", " ") for one in found] for piece, found in tokens.items() if len(found) > 1}
    single = [piece for piece in tokens if piece not in several]
    lines = [f"{json.dumps(name)}: {json.dumps(found)}" for name, found in several.items()]
    FILE.write_text(
        '{"single": ' + json.dumps(single) + ',\n"several": {\n' + ",\n".join(lines) + "\n}}\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
