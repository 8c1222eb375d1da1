"""The picture of the page about positions: activation patching of the residual stream, layer by position.

python docs/pictures/positions.py    # writes resid_pre.png beside it; seconds
"""

from pathlib import Path

from igap import PromptPair, activation_patching, load_model

SHOWN = "resid_pre"

if __name__ == "__main__":
    pair = PromptPair(
        clean="After John and Mary went to the store, Mary gave a bottle of milk to",
        corrupted="After John and Mary went to the store, John gave a bottle of milk to",
        answer=" John",
        distractor=" Mary",
    )
    axes = activation_patching(load_model(), pair, SHOWN, positions="each").plot()
    axes.figure.savefig(Path(__file__).with_name(f"{SHOWN}.png"))
