"""A circuit of the exam, and what all of them share: the sketch of a model with distractors, and its closed form."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformer_lens.model_bridge import TransformerBridge

from igap.bench.blueprint import Blueprint
from igap.bench.truth import At, Equations, Truth
from igap.components import component_names
from igap.inputs.prompts import PromptPair

PAIR = PromptPair("After John gave it to", "After Mary gave it to", " John", " Mary")
"""6 tokens with BOS; the name is at position 2. In most models John has the feature `name`."""

SPOT = 2
"""The position of that name."""

WEAK_HEAD, WEAK_NEURON, LOUD = 0.04, 0.03, 10.0


@dataclass(frozen=True, eq=False)
class Circuit:
    """A model with weights written by hand, a prompt pair, and the truth about it."""

    name: str
    meaning: str
    """What it computes, in one sentence."""
    lesson: str
    """What it teaches about attribution methods, in one sentence."""
    blueprint: Blueprint
    equations: Equations
    pair: PromptPair = PAIR

    @property
    def prompts(self) -> tuple[PromptPair, ...]:
        """The prompt pair, as the exam has pairs of every model."""
        return (self.pair,)

    @property
    def unit(self) -> str:
        """The unit of effects."""
        return "logits"

    def load(self) -> TransformerBridge:
        """The model, in float64."""
        return self.blueprint.load()

    def save(self, folder: Path) -> None:
        """Write the model as a Hugging Face checkpoint, for `igap run model=hf model.name=FOLDER`."""
        self.blueprint.save(folder)

    @cached_property
    def truth(self) -> Truth:
        """Effects and interactions of its components in closed form."""
        model = self.blueprint
        heads = component_names("heads", model.n_layers, model.n_heads)
        return Truth(self.equations, (*heads, *component_names("neurons", model.n_layers, model.n_neurons)))


def relu(x: float) -> float:
    """The larger of x and 0."""
    return max(0.0, x)


def softmax(score: float, *others: float) -> float:
    """The attention to the first of several positions with these scores."""
    return 1 / (1 + sum(math.exp(other - score) for other in others))


def sketch(n_layers: int = 3, activation: str = "relu", spot: int = SPOT, answer: str = "John") -> Blueprint:
    """A model of 4 heads and 4 neurons a layer, of which the last two are distractors.

    The answer's logit is the feature `out`. John has the feature `name`. The last layer is idle: AtP*, whose passes
    leave one layer out each, has one that leaves nothing out that matters. In every layer

    - head 2 reads `name` where the prompts differ, at `spot`, and has a small effect, directly and by way of neuron 2;
    - head 3 and neuron 3 move by more than any other head or neuron, and nothing reads what they write.
    """
    model = Blueprint(n_layers, 4, 4, activation)
    model.word("John", name=1.0)
    weak = {f"weak_{layer}": WEAK_HEAD for layer in range(n_layers)}
    for layer in range(n_layers):
        model.head(f"{layer}.2", ({"name": 1.0}, {f"weak_{layer}": 1.0}), matches=model.look_at(spot))
        model.head(f"{layer}.3", ({"name": LOUD}, {f"loud_{layer}": 1.0}), matches=model.look_at(spot))
        model.neuron(f"L{layer}.N2", {f"weak_{layer}": 1.0}, {"out": WEAK_NEURON})
        model.neuron(f"L{layer}.N3", {f"loud_{layer}": 1.0}, {"unread": 1.0})
    model.logit(answer, out=1.0, **weak)
    return model


def distractors(x: float, at: At, n_layers: int = 3, act: Callable[[float], float] = relu) -> float:
    """What the distractors of `sketch` add to F, in logits, with x of the feature `name` at the spot."""
    small = 0.0
    for layer in range(n_layers):
        weak, loud = at(f"{layer}.2", x), at(f"{layer}.3", LOUD * x)
        at(f"L{layer}.N3", act(loud))
        small += WEAK_HEAD * weak + WEAK_NEURON * at(f"L{layer}.N2", act(weak))
    return small
