"""The picture of the idea: two prompts, one head's activation carried over, the logit difference before and after.

    python docs/pictures/idea.py    # writes idea.png beside it; seconds

Every number in it is computed here, on the embedded model.
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

from igap import PromptPair, activation_patching, integrated_gradients, load_model, output_curve
from igap.plots.canvas import PALETTE, use_style

LAYER, HEAD = 0, 6
CLEAN, CORRUPTED, IG, INK, PALE, GREY = PALETTE[0], PALETTE[3], PALETTE[2], "#26303a", "#c9d0d6", "#5b656e"
MINUS = "\N{MINUS SIGN}"
WIDTH, HEIGHT = 100, 47  # of the canvas, in its own units
LEFT, RIGHT = 3, 97
STEP, MARGIN, BETWEEN = 1.75, 0.4, 2.6  # of heads, around them, between layers


def draw_prompt(ax: Axes, y: float, label: str, pair: tuple[str, str], answer: str, colour: str) -> None:
    """One prompt on a line, the word that differs from the other prompt on a ground of its colour."""
    x = float(LEFT)
    for word, other in [(label, label), *zip(pair[0].split(), pair[1].split(), strict=True), ("→" + answer, None)]:
        style = {"fontsize": 11, "color": INK}
        if word == label:
            style = {"fontsize": 9, "color": colour, "weight": "bold"}
        elif other is None:
            style = {"fontsize": 11, "color": colour}
        elif word != other:
            style = {
                "fontsize": 11,
                "color": "white",
                "bbox": {"boxstyle": "round,pad=0.22", "fc": colour, "ec": "none"},
            }
        drawn = ax.text(x, y, word, va="baseline", **style)
        end = drawn.get_window_extent().transformed(ax.transData.inverted()).x1
        x = max(end + (1.3 if "bbox" in style else 1.0), LEFT + 17 if word == label else 0)


def draw_heads(ax: Axes, y: float, n_layers: int, n_heads: int) -> tuple[float, float]:
    """A model as layers of heads, from left to right. Returns x of the head that moves, and of the end."""
    width = n_heads * STEP + 2 * MARGIN
    for layer in range(n_layers):
        left = LEFT + layer * (width + BETWEEN)
        ax.add_patch(FancyBboxPatch((left, y - 1.6), width, 3.2, boxstyle="round,pad=0.1", fc="white", ec=PALE, lw=1))
        ax.text(left, y + 2.3, f"layer {layer}", fontsize=7.5, color=GREY)
        arrow = {"arrowstyle": "->", "color": GREY}
        ax.annotate("", (left + width + BETWEEN - 0.2, y), (left + width + 0.2, y), arrowprops=arrow)
        for head in range(n_heads):
            colour = CORRUPTED if (layer, head) == (LAYER, HEAD) else PALE
            centre = (left + MARGIN + STEP * (head + 0.5), y)
            ax.add_patch(Circle(centre, 0.72, fc=colour, ec="none", zorder=3))
    moved = LEFT + LAYER * (width + BETWEEN) + MARGIN + STEP * (HEAD + 0.5)
    return moved, LEFT + n_layers * (width + BETWEEN) + 0.6


def draw_arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    """A thick arrow."""
    style = {"arrowstyle": "-|>", "mutation_scale": 14, "lw": 2, "shrinkA": 0, "shrinkB": 0}
    ax.add_patch(FancyArrowPatch(start, end, color=colour, zorder=4, **style))


def number(value: float) -> str:
    """With its sign, and a minus as long as the plus."""
    return f"{value:+.2f}".replace("-", MINUS)


@use_style()
def draw(pair: PromptPair) -> Figure:
    """The picture of this pair on the embedded model."""
    model = load_model()
    maps = activation_patching(model, pair), integrated_gradients(model, pair)
    ap, ig = (float(each.effect[LAYER, HEAD]) for each in maps)
    shape, gap = maps[0].effect.shape, float(maps[0].gap)
    clean = float(output_curve(model, pair, [f"{LAYER}.{HEAD}"], alphas=[0, 0.5, 1]).values[0, 0])

    fig = Figure(figsize=(10, 10 * HEIGHT / WIDTH), dpi=160, facecolor="#fbfbf9")
    FigureCanvasAgg(fig)
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    ax.set_axis_off()

    draw_prompt(ax, 43, "clean prompt", (pair.clean, pair.corrupted), pair.answer, CLEAN)
    moved, end = draw_heads(ax, 37, *shape)
    ax.text(end, 37.3, f"F = {number(clean)}", fontsize=11, color=CLEAN, weight="bold")
    ax.text(end, 34.9, f"with head {LAYER}.{HEAD}\nmoved: {number(clean + ap)}", fontsize=9, color=INK, va="top")
    draw_arrow(ax, (moved, 26.2), (moved, 35.9), CORRUPTED)
    text = (
        f"the activation of one head (layer {LAYER}, head {HEAD}) moves\n"
        "from the corrupted prompt's to the clean prompt's run"
    )
    ax.text(moved + 1.5, 31, text, fontsize=9, color=INK, va="center")
    draw_heads(ax, 25, *shape)
    ax.text(end, 24.4, f"F = {number(clean - gap)}", fontsize=11, color=CORRUPTED, weight="bold")
    draw_prompt(ax, 19, "corrupted prompt", (pair.corrupted, pair.clean), pair.distractor, CORRUPTED)

    def at(value: float) -> float:
        return LEFT + 5 + (value - (clean - gap)) / gap * (RIGHT - LEFT - 10)

    line = 6.2
    ax.plot([at(clean - gap), at(clean)], [line, line], color=PALE, lw=3, solid_capstyle="round", zorder=1)
    for value, colour, text in ((clean - gap, CORRUPTED, "corrupted"), (clean, CLEAN, "clean")):
        ax.add_patch(Circle((at(value), line), 0.9, fc=colour, ec="none", zorder=3))
        ax.text(at(value), line - 3.5, f"{text}\n{number(value)}", fontsize=9, color=colour, ha="center", va="center")
    for y, effect, colour, text in (
        (line + 3, ap, CLEAN, "AP runs the model again with this head moved"),
        (line + 7, ig, IG, "IG adds up gradients while the whole layer moves"),
    ):
        draw_arrow(ax, (at(clean), y), (at(clean + effect), y), colour)
        text = f"{text}: effect {number(effect)} logits, score {number(effect / gap)}"
        ax.text(at(clean + effect) - 1, y, text, fontsize=9, color=colour, ha="right", va="center")
    text = f"F = logit[{pair.answer.strip()}] {MINUS} logit[{pair.distractor.strip()}];   gap {gap:.2f} logits"
    ax.text(at(clean - gap / 2), line - 3.5, text, fontsize=9, color=GREY, ha="center", va="center")
    return fig


if __name__ == "__main__":
    draw(
        PromptPair(
            clean="After John and Mary went to the store, Mary gave a bottle of milk to",
            corrupted="After John and Mary went to the store, John gave a bottle of milk to",
            answer=" John",
            distractor=" Mary",
        )
    ).savefig(Path(__file__).with_suffix(".png"))
