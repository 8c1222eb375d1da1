"""Components and sets that a config names: refused early where the model or the run has none, and found in its maps."""

from collections.abc import Mapping, Sequence

from igap.attribution.maps import AttributionMap
from igap.attribution.methods import METHODS
from igap.components import Site, Top, component_names, is_component, locate_set, parse_set, setting_with, sites_of
from igap.config import RunConfig
from igap.errors import InputError
from igap.models.load import Header
from igap.vocabulary import Method


def check_named(texts: Sequence[str], config: RunConfig, header: Header, *, item: str) -> None:
    """Raise InputError, naming `item`, on a component, class or site that the model or the run does not have."""
    for text in texts:
        top, n_heads = parse_set(text), (header.n_layers or 0) * (header.n_heads or 0)
        if not isinstance(top, Top):
            locate_set(text, header.n_layers, header.widths, item=item)
        elif 0 < n_heads < top.k:
            raise InputError(f"{item}: got {text}, but the model has {n_heads} heads. Use fewer.")
        if isinstance(top, Top):
            check_ranking(top.by, config, header, item=item, got=text)
        if "ioi:" in text and config.model.circuit is None:
            raise InputError(
                f"{item}: got {text}, a class of the IOI circuit, with model.circuit=null, wanted a model that has it. "
                "Set model.circuit=ioi, or name the components."
            )
        for site in sites_of([text]):
            if site not in config.asked_sites:
                raise InputError(
                    f"{item}: got {text} with sites={config.sites}, wanted {site} among the sites. Set "
                    f"sites={setting_with(config.asked_sites, site)}, or name others."
                )


def check_ranking(method: Method, config: RunConfig, header: Header, *, item: str, got: str) -> None:
    """Raise InputError, naming `item`, on a ranking by a method of which the run has no map."""
    if reason := METHODS[method].missing(config, "heads", header.n_layers or 2):
        raise InputError(f"{item}: got {got}, but the run has no map by {method}: it is {reason}. Use ap or ig.")


def names_in(text: str, maps: Mapping[Site, Mapping[str, AttributionMap]]) -> tuple[str, ...]:
    """Return the names of a set's components; those of a ranking are the first heads of the run's map."""
    members = parse_set(text)
    if not isinstance(members, Top):
        return members
    return strongest(maps["heads"][members.by], members.k)


def name_of(text: str, maps: Mapping[Site, Mapping[str, AttributionMap]]) -> str:
    """Return the name of a component, or the names of a set's, joined by +."""
    return text if is_component(text) else "+".join(names_in(text, maps))


def strongest(attribution: AttributionMap, k: int) -> tuple[str, ...]:
    """Return the names of the k components with the largest |effect|, largest first."""
    names = component_names(attribution.site, *attribution.effect.shape)
    order = attribution.effect.abs().flatten().argsort(descending=True, stable=True)
    return tuple(names[int(i)] for i in order[:k])
