"""What a search is about: a component or a set of them, at all positions or at a span. Imports no heavy library."""

from collections.abc import Mapping
from dataclasses import dataclass

from igap.components import (
    PLACES,
    Site,
    component_name,
    is_component,
    locate_set,
    names_wanted,
    parse_component,
    parse_set,
)
from igap.config import PositionsConfig
from igap.errors import InputError, short_repr
from igap.vocabulary import ROLES

Member = tuple[Site, int, int]
"""Site, layer and index of a component."""

_SEVERAL = ("all", "each", "roles", "own", "spans")
"""Words for positions that name no span."""


@dataclass(frozen=True)
class Target:
    """The components that are patched together, and where."""

    members: tuple[Member, ...]
    span: str | None = None
    """A role such as S2, `last`, `diff`, or an index, a range or words of the clean prompt; None: all positions."""
    where: tuple[int, ...] | None = None
    """Positions that an index, a range or words stand for; None: not known yet, or another span."""
    every: bool = False
    """Whether the members are all heads of the model, which are written `all`."""

    @property
    def component(self) -> str:
        """Its members' names, joined by +."""
        return "all" if self.every else "+".join(component_name(*member) for member in self.members)

    @property
    def name(self) -> str:
        """As it is written: `9.6`, `9.6+9.9@S2`."""
        return self.component + self.at

    @property
    def at(self) -> str:
        """`@S2`, nothing where it is about all positions."""
        return "" if self.span is None else f"@{self.span}"

    @property
    def single(self) -> Member | None:
        """Its only member; None of a set."""
        return self.members[0] if len(self.members) == 1 else None

    @property
    def head(self) -> Member | None:
        """Its only member where that is a head."""
        return self.single if self.members[0][0] == "heads" else None

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites of its members, each once."""
        return tuple(site for site in PLACES if any(member[0] == site for member in self.members))

    @property
    def places(self) -> tuple[tuple[Site, int], ...]:
        """Site and layer of its members, each once, by layer."""
        return tuple(sorted({member[:2] for member in self.members}, key=lambda at: (at[1], at[0])))

    @property
    def positions(self) -> PositionsConfig:
        """The positions of a run that shows what is patched: those of all roles where it is at one of them."""
        span = self.span
        if span is None:
            return PositionsConfig()
        if span in ("last", "diff"):
            return PositionsConfig(kind=span)
        if span in ROLES:
            return PositionsConfig(kind="roles")
        try:
            return PositionsConfig(spans={span: int(span) if span.isdecimal() else span})
        except InputError:
            raise InputError(
                f"head: got {self.name}, wanted a position, a range of them (3-4) or words of the clean prompt after "
                f"the @. Use {self.component}@last, or another span."
            ) from None

    @property
    def ig_is_ap(self) -> bool:
        """Whether nothing moves along IG's path but the target, so that its IG is its AP by completeness."""
        return self.single is None or (PLACES[self.members[0][0]].is_vector and self.span is None)


def normalize_target(text: str) -> str:
    """A target as studies and folders name it: members by layer, each name as igap writes it.

    Raises ValueError, whose text is what was wanted instead.
    """
    components, at, span = text.partition("@")
    if at and (not span or span in _SEVERAL):
        raise ValueError(
            f"a span after @, a role of a generated prompt ({', '.join(ROLES)}), last, diff, an index or a "
            f"word, as in {components}@last; not {span or 'nothing'}"
        )
    parts = components.split("+")
    if not all(is_component(part) or part.startswith("ioi:") for part in parts):
        raise ValueError(f"{names_wanted()}, or a set such as 9.6+9.9, at a span or not, as in 9.6@END")
    parse_set(components)
    if all(map(is_component, parts)):
        ordered = sorted(map(parse_component, parts), key=lambda at: (at[1], tuple(PLACES).index(at[0]), at[2]))
        components = "+".join(component_name(*member) for member in ordered)
    return components + at + span


def locate_target(text: str, n_layers: int | None, widths: Mapping[Site, int | None], *, each: bool = False) -> Target:
    """The target of this name in a model of this shape.

    With `each` its members are looked at one by one, and `all` is every head. Raises InputError on what is no target,
    and where the model has no such components.
    """
    if each and text == "all":
        assert n_layers is not None and widths["heads"] is not None  # noqa: PT018
        members: list[Member] = [("heads", layer, head) for layer in range(n_layers) for head in range(widths["heads"])]
        return Target(tuple(members), every=True)
    try:
        components, _, span = normalize_target(text).partition("@")
    except ValueError as error:
        raise InputError(f"head: got {short_repr(text)}, wanted {error}.") from None
    return Target(locate_set(components, n_layers, widths, item="head"), span or None)
