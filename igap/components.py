"""Sites, components and sets of components: what an attribution is about, and how it is named.

A site is one kind of activation, one tensor a layer, with one component a column: those of `PLACES`. Unless it is told
others, a run takes apart attention heads (`hook_z`, before the output projection) and MLP neurons (`hook_post`, after
the nonlinearity). A set is written with plus signs, `9.6+9.9+L5.N1234`: see `parse_set`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from igap.errors import InputError, short_repr
from igap.vocabulary import Method

Site = Literal["heads", "neurons", "q", "k", "v", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]
SITES: tuple[Site, ...] = ("heads", "neurons")
"""Those that a run takes apart unless it is told others."""


@dataclass(frozen=True)
class Place:
    """Where a site is, and what its components are."""

    hook: str
    """TransformerLens' hook point in a block."""
    column: Literal["head", "neuron", "kv_head"] | None
    """What a component is; None where the site is one vector a layer, and its only component."""

    @property
    def is_vector(self) -> bool:
        """Whether the hook point's last axis is d_model, without an axis of components."""
        return self.column is None


PLACES: Mapping[Site, Place] = {
    "heads": Place("attn.hook_z", "head"),
    "neurons": Place("mlp.hook_post", "neuron"),
    "q": Place("attn.hook_q", "head"),
    "k": Place("attn.hook_k", "kv_head"),
    "v": Place("attn.hook_v", "kv_head"),
    "resid_pre": Place("hook_in", None),
    "resid_mid": Place("hook_resid_mid", None),
    "resid_post": Place("hook_out", None),
    "attn_out": Place("hook_attn_out", None),
    "mlp_out": Place("hook_mlp_out", None),
}
"""Queries and keys are those before rotary positions; keys and values are those of key-value heads."""

IOI_CIRCUIT: Mapping[str, tuple[str, ...]] = {
    "name mover": ("9.9", "9.6", "10.0"),
    "negative name mover": ("10.7", "11.10"),
    "S-inhibition": ("7.3", "7.9", "8.6", "8.10"),
    "induction": ("5.5", "5.8", "5.9", "6.9"),
    "duplicate token": ("0.1", "0.10", "3.0"),
    "previous token": ("2.2", "4.11"),
    "backup name mover": ("9.0", "9.7", "10.1", "10.2", "10.6", "10.10", "11.2", "11.9"),
}
"""The 26 heads by class: Wang et al. 2022 (arXiv 2211.00593)."""

IOI_SHAPE = (12, 12)
"""Layers and heads a layer of the model that these heads are of, GPT-2 small."""

MOST_MEMBERS = 64
"""Members of a set."""

_CLASSES = {f"ioi:{name.replace(' ', '-')}": heads for name, heads in IOI_CIRCUIT.items()}
_TOP = re.compile(r"top(?P<k>[0-9]{1,9}):(?P<by>.*)")

_NUMBER = "[0-9]{1,9}"
_NAME = re.compile(
    rf"(?P<head_layer>{_NUMBER})\.(?P<head>{_NUMBER})|L(?P<neuron_layer>{_NUMBER})\.N(?P<neuron>{_NUMBER})"
)

_OTHER = re.compile(
    rf"(?P<layer>{_NUMBER})\.(?P<index>{_NUMBER})\.(?P<part>[a-z_]+)|L(?P<vector_layer>{_NUMBER})\.(?P<vector>[a-z_]+)"
)


def kind_of(site: Site) -> str:
    """What a component of the site is, in words."""
    return (PLACES[site].column or site).replace("kv_", "key-value ")


def hook_name(site: Site, layer: int) -> str:
    """TransformerLens' name of the site's hook point."""
    return f"blocks.{layer}.{PLACES[site].hook}"


def component_name(site: Site, layer: int, index: int) -> str:
    """The name people use: head `9.6`, neuron `L5.N1234`; the query of a head `9.6.q`, the residual stream
    `L5.resid_pre`. `parse_component` is its inverse for heads and neurons."""
    if site == "neurons":
        return f"L{layer}.N{index}"
    if PLACES[site].is_vector:
        return f"L{layer}.{site}"
    return f"{layer}.{index}" if site == "heads" else f"{layer}.{index}.{site}"


def component_names(site: Site, n_layers: int, n_components: int, spans: Sequence[str] | None = None) -> list[str]:
    """The names of all components, layer by layer: the row-major order of a `[layer, component]` map.

    With spans that of `[layer, span, component]`: `9.6 at 10 Mary`.
    """
    return [
        component_name(site, layer, index) + where
        for layer in range(n_layers)
        for where in (("",) if spans is None else (f" at {span}" for span in spans))
        for index in range(n_components)
    ]


def parse_component(name: str) -> tuple[Site, int, int]:
    """Parse a component's name into site, layer and index. Raises ValueError if it is no such name."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"component: got {name!r}, wanted a head such as 9.6 or a neuron such as L5.N1234")
    if match["head"] is not None:
        return "heads", int(match["head_layer"]), int(match["head"])
    return "neurons", int(match["neuron_layer"]), int(match["neuron"])


def parse_any(name: str) -> tuple[Site, int, int]:
    """Parse a component's name of any site, as `component_name` gives it. Raises ValueError if it is none."""
    if is_component(name):
        return parse_component(name)
    match = _OTHER.fullmatch(name)
    site = next((site for site in PLACES if match is not None and site == (match["part"] or match["vector"])), None)
    if match is None or site is None:
        raise ValueError(f"component: got {name!r}, wanted one such as 9.6, L5.N1234, 9.6.q or L5.resid_pre")
    return site, int(match["layer"] or match["vector_layer"]), int(match["index"] or 0)


def is_component(name: str) -> bool:
    """Whether this is a component's name in any model."""
    return _NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class Top:
    """The heads with the largest |effect| by a method, which only a run knows."""

    k: int
    by: Method


def parse_set(text: str) -> tuple[str, ...] | Top:
    """The components that a set is made of, by their names, or the ranking that gives them.

    `9.6+9.9+L5.N1234` is components, in the order given; `ioi:name-mover`, which may stand among them, the heads of a
    class of IOI_CIRCUIT; `top8:ap` the first 8 heads by |AP|. One component is a set of one.

    Raises ValueError, whose text is what was wanted instead.
    """
    if top := _TOP.fullmatch(text):
        methods = get_args(Method)
        if top["by"] not in methods or not 1 <= int(top["k"]) <= MOST_MEMBERS:
            raise ValueError(f"topK:METHOD alone, K from 1 to {MOST_MEMBERS} and METHOD of {', '.join(methods)}")
        return Top(int(top["k"]), top["by"])  # type: ignore[arg-type]
    members: list[tuple[Site, int, int]] = []
    for part in text.split("+"):
        if part.startswith("ioi:") and part not in _CLASSES:
            raise ValueError(f"one of {', '.join(_CLASSES)} for {short_repr(part)}")
        if part not in _CLASSES and not is_component(part):
            raise ValueError(
                "components such as 9.6 and L5.N1234 or a class such as ioi:name-mover, joined by +, or top8:ap; "
                f"{short_repr(part)} is none of these"
            )
        members += map(parse_component, _CLASSES.get(part, (part,)))
    if twice := [member for member in members if members.count(member) > 1]:
        raise ValueError(f"each component once, not {component_name(*twice[0])} twice")
    if len(members) > MOST_MEMBERS:
        raise ValueError(f"a set of at most {MOST_MEMBERS} components, not {len(members)}")
    return tuple(component_name(*member) for member in members)


def sets_problem(texts: Sequence[str]) -> str | None:
    """What was wanted instead of these sets or components; None where there is at least one, and none twice."""
    if not texts:
        return "at least one component such as 9.6, or set such as 9.6+9.9"
    sets: list[object] = []
    for text in texts:
        try:
            parsed = parse_set(text)
        except ValueError as error:
            return str(error)
        sets.append(parsed if isinstance(parsed, Top) else frozenset(parsed))
        if sets.count(sets[-1]) > 1:
            return f"each component or set once, not {short_repr(text)} twice"
    return None


def sites_named(setting: str) -> tuple[Site, ...]:
    """The sites that a setting stands for: `none`, `both` (heads and neurons), or names with spaces between them."""
    names = {"none": (), "both": SITES}.get(setting, setting.split())
    return tuple(site for site in PLACES if site in names)


def sites_of(texts: Iterable[str]) -> tuple[Site, ...]:
    """The sites of these components and sets, each once, heads first; other texts are ignored."""
    sites: set[Site] = set()
    for text in texts:
        try:
            members = parse_set(text)
        except ValueError:
            continue
        sites |= {"heads"} if isinstance(members, Top) else {parse_component(name)[0] for name in members}
    return tuple(site for site in SITES if site in sites)


def widths_of(n_heads: int | None, n_neurons: int | None) -> dict[Site, int | None]:
    """Return how many components of each site a layer has; None where that is not known."""
    return {"heads": n_heads, "neurons": n_neurons}


def locate(name: str, n_layers: int | None, widths: Mapping[Site, int | None], *, item: str) -> tuple[Site, int, int]:
    """Find the site, layer and index of a component in a model of this shape; an unknown size is None.

    Raises InputError naming `item` if it is no component's name, or the model has no such component.
    """
    if not is_component(name):
        raise InputError(f"{item}: got {short_repr(name)}, wanted a head such as 9.6 or a neuron such as L5.N1234.")
    site, layer, index = parse_component(name)
    for what, got, n in (("layers", layer, n_layers), (site, index, widths[site])):
        if n is not None and got >= n:
            where = " in a layer" if what == site else ""
            raise InputError(
                f"{item}: got {name}, but the model has {n} {what}{where} (0 to {n - 1}). Name one that it has."
            )
    return site, layer, index


def locate_set(
    text: str, n_layers: int | None, widths: Mapping[Site, int | None], *, item: str
) -> tuple[tuple[Site, int, int], ...]:
    """Find the components of a set in a model of this shape, in the set's order, as `locate` does.

    Raises InputError naming `item` if it is no set, not one of this model, or a ranking.
    """
    if not re.search("[+:]", text):
        return (locate(text, n_layers, widths, item=item),)
    try:
        members = parse_set(text)
    except ValueError as error:
        raise InputError(f"{item}: got {short_repr(text)}, wanted {error}.") from None
    if isinstance(members, Top):
        raise InputError(f"{item}: got {text}, a ranking that only a run has. Name components, as in 9.6+9.9.")
    if "ioi:" in text and (n_layers, widths["heads"]) != IOI_SHAPE:
        raise InputError(
            f"{item}: got {text}, heads of GPT-2 small ({IOI_SHAPE[0]} layers, {IOI_SHAPE[1]} heads), with a model of "
            f"{n_layers} layers and {widths['heads']} heads. Name components."
        )
    return tuple(locate(name, n_layers, widths, item=item) for name in members)
