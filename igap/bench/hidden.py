"""Hidden heads: those that saturation, a later neuron or a backup keeps from view."""

import math

from igap.bench.circuit import SPOT, Circuit, distractors, relu, sketch
from igap.bench.truth import At


def saturation() -> Circuit:
    """F = tanh(5 z(0.0)) + z(0.1) / 2, the first by way of L1.N0.

    On the clean run the neuron is saturated: its slope is 5 / cosh(5)^2 = 0.0009, less than the distractors have.

    Truth, noising and denoising, in logits:
        0.0      -1.000  +1.000
        0.1      -0.500  +0.500
        L1.N0    -1.000  +1.000
        0.0+0.1  -1.500  +1.500
    """
    model = sketch(activation="tanh")
    model.head("0.0", ({"name": 1.0}, {"steep": 5.0}), matches=model.look_at(SPOT))
    model.head("0.1", ({"name": 1.0}, {"out": 0.5}), matches=model.look_at(SPOT))
    model.neuron("L1.N0", {"steep": 1.0}, {"out": 1.0})

    def f(x: float, at: At) -> float:
        saturated = at("L1.N0", math.tanh(5 * at("0.0", x)))
        return saturated + at("0.1", x) / 2 + distractors(x, at, act=math.tanh)

    return Circuit(
        "saturation",
        "A head is read by a neuron that is saturated on the clean prompt.",
        "AtP sees the slope of the clean run, which is 0, and misses the head; IG goes all the way.",
        model,
        f,
    )


def self_cancelling() -> Circuit:
    """F = z(0.0) - N + z(1.0) with N = L1.N0 = max(0, z(0.0)): the neuron takes away what head 0.0 writes.

    The direct and the indirect effect of 0.0 cancel: it has none alone, and all of 1 where the neuron stays.

    Truth, noising and denoising, in logits:
        0.0        +0.000  +0.000
        L1.N0      +1.000  -1.000
        1.0        -1.000  +1.000
        0.0+L1.N0  +0.000  +0.000
    """
    model = sketch()
    model.head("0.0", ({"name": 1.0}, {"m": 1.0, "out": 1.0}), matches=model.look_at(SPOT))
    model.neuron("L1.N0", {"m": 1.0}, {"out": -1.0})
    model.head("1.0", ({"name": 1.0}, {"out": 1.0}), matches=model.look_at(SPOT))

    def f(x: float, at: At) -> float:
        m = at("0.0", x)
        return m - at("L1.N0", relu(m)) + at("1.0", x) + distractors(x, at)

    return Circuit(
        "self_cancelling",
        "A neuron takes away what an earlier head writes.",
        "The head's direct and indirect effect cancel, and only AtP*, which leaves one of them out, finds it.",
        model,
        f,
    )


def backup() -> Circuit:
    """F = 2 z(0.0) + z(0.1) / 2 + z(1.0), where 1.0 reads the neuron L0.N0, which is on at John where 0.0 is off.

    In both runs the backup is off: on the clean one by 0.0, on the corrupted one because there is no John. No method
    that patches or differentiates one of the two can see it, and it hides half of what 0.0 does.

    Truth, noising and denoising, in logits:
        0.0        -1.000  +2.000
        0.1        -0.500  +0.500
        1.0        +0.000  +0.000
        L0.N0      +0.000  +0.000
        0.0+1.0    -2.000  +2.000
        0.0+L0.N0  -2.000  +2.000
    """
    model = sketch()
    model.head("0.0", ({"name": 1.0}, {"m": 1.0, "out": 2.0}), matches=model.look_at(SPOT))
    model.head("0.1", ({"name": 1.0}, {"out": 0.5}), matches=model.look_at(SPOT))
    model.neuron("L0.N0", {"name": 1.0, "m": -2.0}, {"missing": 1.0})
    model.head("1.0", ({"missing": 1.0}, {"out": 1.0}), matches=model.look_at(SPOT))

    def f(x: float, at: At) -> float:
        first = at("0.0", x)
        missing = at("L0.N0", relu(x - 2 * first))
        return 2 * first + at("0.1", x) / 2 + at("1.0", missing) + distractors(x, at)

    return Circuit(
        "backup",
        "A head acts only where an earlier one is gone.",
        "The backup's activation is 0 in both runs, and every method misses it: patch it together with the first head.",
        model,
        f,
    )
