"""Sites and components: what an attribution is about, and how it is named.

A site is one kind of activation, one tensor a layer, with one component a column: those of `PLACES`. Unless it is told
others, a run takes apart attention heads (`hook_z`, before the output projection) and MLP neurons (`hook_post`, after
the nonlinearity).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from igap.errors import InputError, short_repr

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

_NUMBER = "[0-9]{1,9}"
_NAME = re.compile(
    rf"(?P<head_layer>{_NUMBER})\.(?P<head>{_NUMBER})|L(?P<neuron_layer>{_NUMBER})\.N(?P<neuron>{_NUMBER})"
)


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


def is_component(name: str) -> bool:
    """Whether this is a component's name in any model."""
    return _NAME.fullmatch(name) is not None


def are_components(names: Sequence[str]) -> bool:
    """Whether these are names of components, at least one and none twice."""
    return bool(names) and all(map(is_component, names)) and len(set(map(parse_component, names))) == len(names)


def sites_named(setting: str) -> tuple[Site, ...]:
    """The sites that a setting stands for: `none`, `both` (heads and neurons), or names with spaces between them."""
    names = {"none": (), "both": SITES}.get(setting, setting.split())
    return tuple(site for site in PLACES if site in names)


def sites_of(names: Iterable[str]) -> tuple[Site, ...]:
    """The sites of these components, each once, heads first; texts that name no component are ignored."""
    sites = {parse_component(name)[0] for name in names if is_component(name)}
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
