"""The truth about a circuit: its closed form, evaluated with components replaced. Plain numbers; no model runs here."""

import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar, runtime_checkable

from igap.vocabulary import Direction

Value = TypeVar("Value", float, tuple[float, float])
"""What a component's activation holds, one number for each dimension that is in use."""

SHARE = 0.1
"""The share of the gap from which on a component matters."""


@runtime_checkable
class At(Protocol):
    """A component's activation."""

    def __call__(self, name: str, value: Value, /) -> Value:
        """What it is: `value`, unless the component is replaced."""


Equations = Callable[[float, At], float]
"""F in logits, from the input, 1 for the clean prompt and 0 for the corrupted one, by way of every component."""


@dataclass(frozen=True)
class Truth:
    """What follows from a circuit's closed form."""

    equations: Equations
    names: tuple[str, ...]
    """Every head and neuron of the model, also those that do nothing."""

    def f(self, run: float, replaced: Collection[str] = ()) -> float:
        """F of a run (1 clean, 0 corrupted), in logits, with these components replaced by the other run's."""
        known, key = self._known, (run, frozenset(replaced))
        if key not in known:
            other = self._activations[1.0 - run]

            def replace(name: str, value: Value, /) -> Value:
                held: Value = other[name] if name in replaced else value
                return held

            known[key] = self.equations(run, replace)
        return known[key]

    @cached_property
    def _known(self) -> dict[tuple[float, frozenset[str]], float]:
        """F by run and what is replaced, as far as it was asked for: what matters asks for every two twice."""
        return {}

    @cached_property
    def _activations(self) -> Mapping[float, Mapping[str, Any]]:
        """What the activations of all components hold, by run."""

        def note(run: float) -> Mapping[str, Any]:
            held = dict[str, Any]()

            def at(name: str, value: Value, /) -> Value:
                held[name] = value
                return value

            self.equations(run, at)
            return held

        return {run: note(run) for run in (0.0, 1.0)}

    @property
    def gap(self) -> float:
        """F(clean) - F(corrupted), in logits."""
        return self.f(1.0) - self.f(0.0)

    def together(self, components: Collection[str], direction: Direction = "noising") -> float:
        """The effect of replacing these components at once, in logits."""
        run = 1.0 if direction == "noising" else 0.0
        return self.f(run, components) - self.f(run)

    def effects(self, direction: Direction = "noising") -> dict[str, float]:
        """Each component's effect alone, in logits: exactly what activation patching computes."""
        return {name: self.together((name,), direction) for name in self.names}

    def effect_given(self, component: str, replaced: str, direction: Direction = "noising") -> float:
        """A component's effect where another one is replaced already, in logits."""
        return self.together((component, replaced), direction) - self.together((replaced,), direction)

    def interaction(self, first: str, second: str, direction: Direction = "noising") -> float:
        """The effect of both at once minus the effects of each alone, in logits."""
        return self.effect_given(first, second, direction) - self.together((first,), direction)

    @cached_property
    def matters(self) -> tuple[str, ...]:
        """The components with an effect of a tenth of the gap or more: alone, or where one other is replaced.

        In either direction. In the order of `names`.
        """
        least, mattering = SHARE * abs(self.gap), set[str]()
        directions: tuple[Direction, ...] = ("noising", "denoising")
        for direction in directions:
            mattering |= {name for name, effect in self.effects(direction).items() if abs(effect) >= least}
            for name, other in itertools.permutations(self.names, 2):
                if name not in mattering and abs(self.effect_given(name, other, direction)) >= least:
                    mattering.add(name)
        return tuple(name for name in self.names if name in mattering)
