"""Draws the pictures of docs/bench.md: what `igap bench` draws, with fewer colours, so that the files are small.

python docs/pictures/bench.py
"""

import tempfile
from pathlib import Path

from PIL import Image

from igap.cli import main

FOLDER = Path(__file__).parent / "bench"
NAMES = (
    *("linear", "inert", "always_on", "and", "or", "xor", "cancellation", "saturation", "self_cancelling", "backup"),
    *("query", "key", "induction", "name_mover"),
)

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        if main(["bench", f"output={folder}", f"circuits={','.join(NAMES)}"]):
            raise SystemExit("the exam failed")
        FOLDER.mkdir(exist_ok=True)
        for name in NAMES:
            with Image.open(Path(folder) / f"{name}.png") as picture:
                picture.convert("RGB").quantize(32).save(FOLDER / f"{name}.png", optimize=True)
