"""What the exam is about: a model, and what is known of its components."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

from igap.inputs.prompts import PromptPair
from igap.vocabulary import Direction


@runtime_checkable
class Known(Protocol):
    """What is known of a model's components: which matter, and the exact effect of each alone."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every component."""

    @property
    def gap(self) -> float:
        """F(clean) - F(corrupted); the mean over pairs."""

    @property
    def matters(self) -> tuple[str, ...]:
        """Those that matter, in the order of `names`."""

    def effects(self, direction: Direction = "noising") -> dict[str, float]:
        """The effect of replacing each component alone."""


@runtime_checkable
class Subject(Protocol):
    """A model with what is known of it: a circuit, or a model of one's own."""

    @property
    def name(self) -> str:
        """In tables and files."""

    @property
    def meaning(self) -> str:
        """What it is, in one sentence."""

    @property
    def lesson(self) -> str:
        """What it teaches about attribution methods, in one sentence."""

    @property
    def prompts(self) -> tuple[PromptPair, ...]:
        """The prompt pairs, over which effects are means."""

    @property
    def unit(self) -> str:
        """The unit of F and of effects."""

    @property
    def truth(self) -> Known:
        """What is known of its components."""


@dataclass(frozen=True)
class Measured:
    """The effects of a trained model's components as activation patching has them, which is exact."""

    gap: float
    noising: Mapping[str, float]
    denoising: Mapping[str, float]
    top: int
    """Components that matter: those with the largest |effect| in either direction."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every component that was patched."""
        return tuple(self.noising)

    def effects(self, direction: Direction = "noising") -> dict[str, float]:
        """The effect of replacing each component alone."""
        return dict(self.noising if direction == "noising" else self.denoising)

    @cached_property
    def matters(self) -> tuple[str, ...]:
        """The `top` components with the largest |effect|, noising or denoising; none that has none."""
        size = {name: max(abs(self.noising[name]), abs(self.denoising[name])) for name in self.names}
        largest = {name for name in sorted(self.names, key=lambda name: -size[name])[: self.top] if size[name] > 0}
        return tuple(name for name in self.names if name in largest)


@dataclass(frozen=True, eq=False)
class OwnModel:
    """A model of one's own."""

    name: str
    prompts: tuple[PromptPair, ...]
    unit: str
    truth: Measured

    @property
    def meaning(self) -> str:
        """What it is."""
        pairs = "one prompt pair" if len(self.prompts) == 1 else f"means over {len(self.prompts)} prompt pairs"
        return f"{len(self.truth.names)} components, {pairs}."

    @property
    def lesson(self) -> str:
        """What is known of it."""
        n = len(self.truth.matters)
        return f"Truth is activation patching: the {n} largest effects of it, noising or denoising, are what matters."
