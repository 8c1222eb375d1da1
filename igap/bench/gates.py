"""Gates: what two heads do only together, and neurons that combine them.

The heads a = 0.0 and b = 0.1 are 1 on the clean prompt and 0 on the corrupted one.
"""

from igap.bench.blueprint import ONE, Blueprint
from igap.bench.circuit import SPOT, Circuit, distractors, relu, sketch
from igap.bench.truth import At


def _two_heads() -> Blueprint:
    model = sketch()
    for name, feature in (("0.0", "a"), ("0.1", "b")):
        model.head(name, ({"name": 1.0}, {feature: 1.0}), matches=model.look_at(SPOT))
    return model


def and_gate() -> Circuit:
    """F = max(0, a + b - 1), by way of L1.N0.

    Either head breaks it and none restores it alone. On the joint path both fall together, and the neuron is off from
    half way on: IG gives each head half of what it does alone.

    Truth, noising and denoising, in logits:
        0.0      -1.000  +0.000
        0.1      -1.000  +0.000
        0.0+0.1  -1.000  +1.000
        L1.N0    -1.000  +1.000
    """
    model = _two_heads()
    model.neuron("L1.N0", {"a": 1.0, "b": 1.0, ONE: -1.0}, {"out": 1.0})

    def f(x: float, at: At) -> float:
        return at("L1.N0", relu(at("0.0", x) + at("0.1", x) - 1)) + distractors(x, at)

    return Circuit(
        "and",
        "The answer needs both of two heads.",
        "IG moves both heads at once and gives each half of what it does alone.",
        model,
        f,
    )


def or_gate() -> Circuit:
    """F = 1 - max(0, 1 - a - b), by way of L1.N0.

    One head is enough: noising one alone changes nothing, and the gradient on the clean run is 0. Only what moves both
    can see them: IG gives each half.

    Truth, noising and denoising, in logits:
        0.0      +0.000  +1.000
        0.1      +0.000  +1.000
        0.0+0.1  -1.000  +1.000
        L1.N0    -1.000  +1.000
    """
    model = _two_heads()
    model.neuron("L1.N0", {"a": -1.0, "b": -1.0, ONE: 1.0}, {"out": -1.0})
    model.constant(1, out=1.0)

    def f(x: float, at: At) -> float:
        return 1 - at("L1.N0", relu(1 - at("0.0", x) - at("0.1", x))) + distractors(x, at)

    return Circuit(
        "or",
        "The answer needs one of two heads.",
        "AP and AtP patch one head while the other holds the answer, and see neither; IG moves both.",
        model,
        f,
    )


def xor_gate() -> Circuit:
    """F = max(0, a + b) - 2 max(0, a + b - 1) + z(1.0), by way of L1.N0 and L1.N1: a XOR b, and a head of its own.

    Both heads are on in one run and off in the other, where the XOR is 0; it is 1 half way. Each head alone makes it 1,
    and IG's two halves of the joint path cancel.

    Truth, noising and denoising, in logits:
        0.0      +1.000  +1.000
        0.1      +1.000  +1.000
        0.0+0.1  +0.000  +0.000
        L1.N0    -2.000  +2.000
        L1.N1    +2.000  -2.000
        1.0      -1.000  +1.000
    """
    model = _two_heads()
    model.neuron("L1.N0", {"a": 1.0, "b": 1.0}, {"out": 1.0})
    model.neuron("L1.N1", {"a": 1.0, "b": 1.0, ONE: -1.0}, {"out": -2.0})
    model.head("1.0", ({"name": 1.0}, {"out": 1.0}), matches=model.look_at(SPOT))

    def f(x: float, at: At) -> float:
        both = at("0.0", x) + at("0.1", x)
        xor = at("L1.N0", relu(both)) - 2 * at("L1.N1", relu(both - 1))
        return xor + at("1.0", x) + distractors(x, at)

    return Circuit(
        "xor",
        "Two neurons compute the XOR of two heads.",
        "IG goes through the point where one half of each head is gone, up and down again, and gives both heads 0.",
        model,
        f,
    )


def cancellation() -> Circuit:
    """F = max(0, 10 a - 9 b + 1/2), by way of L1.N0.

    The heads nearly cancel. Without a the neuron is off, which bounds what a does alone. On the joint path the neuron
    is always on, and so it is on the clean run: IG and AtP give a all that it writes.

    Truth, noising and denoising, in logits:
        0.0      -1.500  +10.000
        0.1      +9.000  -0.500
        0.0+0.1  -1.000  +1.000
        L1.N0    -1.000  +1.000
    """
    model = _two_heads()
    model.neuron("L1.N0", {"a": 10.0, "b": -9.0, ONE: 0.5}, {"out": 1.0})

    def f(x: float, at: At) -> float:
        return at("L1.N0", relu(10 * at("0.0", x) - 9 * at("0.1", x) + 0.5)) + distractors(x, at)

    return Circuit(
        "cancellation",
        "Two heads cancel, but for a little.",
        "IG and AtP give the first head all that it writes, seven times what is lost without it.",
        model,
        f,
    )
