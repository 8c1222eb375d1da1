"""Read-outs: circuits without interaction, in which only baselines and passes that leave paths out can go wrong."""

from igap.bench.blueprint import ONE
from igap.bench.circuit import SPOT, Circuit, distractors, relu, sketch
from igap.bench.truth import At

_LAST = 5


def linear() -> Circuit:
    """F = m + z(1.0) / 2 + N / 4 with m = z(0.0), where head 1.0 and neuron N = L1.N0 read m: linear everywhere.

    Every method is exact but AtP*, a mean over passes that leave one layer out each: of 0.0 it has 1.375, and
    GIM, which halves what goes by the values of 1.0: of 0.0 it has -1.5.

    Truth, noising and denoising, in logits:
        0.0      -1.750  +1.750
        1.0      -0.500  +0.500
        L1.N0    -0.250  +0.250
        0.0+1.0  -1.750  +1.750
    """
    model = sketch()
    model.head("0.0", ({"name": 1.0}, {"m": 1.0, "out": 1.0}), matches=model.look_at(SPOT))
    model.head("1.0", ({"m": 1.0}, {"out": 0.5}), matches=model.look_at(_LAST))
    model.neuron("L1.N0", {"m": 1.0}, {"out": 0.25})

    def f(x: float, at: At) -> float:
        m = at("0.0", x)
        return m + at("1.0", m) / 2 + at("L1.N0", relu(m)) / 4 + distractors(x, at)

    return Circuit(
        "linear",
        "A head is read directly, by a later head and by a neuron.",
        "All methods are exact but AtP*, which leaves out a layer at a time, and GIM, which halves what values give.",
        model,
        f,
    )


def inert() -> Circuit:
    """F = z(0.0) + z(1.0) / 2. Head 0.1 moves by 1000, and only the neuron L1.N0 reads it, which is always off.

    A difference of activations says nothing by itself: every method multiplies it by a gradient of 0, or patches it and
    sees nothing.

    Truth, noising and denoising, in logits:
        0.0      -1.000  +1.000
        1.0      -0.500  +0.500
        0.0+1.0  -1.500  +1.500
    """
    model = sketch()
    model.head("0.0", ({"name": 1.0}, {"out": 1.0}), matches=model.look_at(SPOT))
    model.head("0.1", ({"name": 1000.0}, {"noise": 1.0}), matches=model.look_at(SPOT))
    model.head("1.0", ({"name": 1.0}, {"out": 0.5}), matches=model.look_at(SPOT))
    model.neuron("L1.N0", {"noise": 1.0, ONE: -2000.0}, {"out": 1.0})

    def f(x: float, at: At) -> float:
        dead = at("L1.N0", relu(at("0.1", 1000 * x) - 2000))
        return at("0.0", x) + at("1.0", x) / 2 + dead + distractors(x, at)

    return Circuit(
        "inert",
        "A head moves by 1000, and what reads it is always off.",
        "No method takes a large difference of activations for an effect.",
        model,
        f,
    )


def always_on() -> Circuit:
    """F = 2 z(0.0) + z(0.1), where 0.1 is 4 on the clean prompt and 5 on the corrupted one.

    Corruption raises 0.1 by 1, and patching it raises F. From the zero baseline all of its 4 seem to be used: IG with
    zero has the other sign and four times the size.

    Truth, noising and denoising, in logits:
        0.0      -2.000  +2.000
        0.1      +1.000  -1.000
        0.0+0.1  -1.000  +1.000
    """
    model = sketch()
    model.head("0.0", ({"name": 1.0}, {"out": 2.0}), matches=model.look_at(SPOT))
    model.head("0.1", ({"name": -1.0, ONE: 5.0}, {"out": 1.0}), matches=model.look_at(SPOT))

    def f(x: float, at: At) -> float:
        return 2 * at("0.0", x) + at("0.1", 5 - x) + distractors(x, at)

    return Circuit(
        "always_on",
        "One head is large on both prompts, and larger on the corrupted one.",
        "IG with the zero baseline gives it the wrong sign and four times its size: it asks for another contrast.",
        model,
        f,
    )
