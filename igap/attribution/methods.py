"""The attribution methods of a run, in the order of the columns. docs/extending/method.md tells how to add one."""

from igap.attribution.activation_patching import METHOD as AP
from igap.attribution.atp_star import METHOD as ATP_STAR
from igap.attribution.attribution_patching import METHOD as ATP
from igap.attribution.conductance import CONDUCTANCE, IG_INPUTS
from igap.attribution.expected_gradients import METHOD as EXPECTED_GRADIENTS
from igap.attribution.integrated_gradients import METHOD as IG
from igap.attribution.method import Method
from igap.attribution.relevance import GIM, RELP
from igap.attribution.shapley import METHOD as SHAPLEY
from igap.config import RunConfig
from igap.errors import InputError, did_you_mean
from igap.models.load import Header

_EVERY = (IG, AP, ATP, ATP_STAR, IG_INPUTS, CONDUCTANCE, EXPECTED_GRADIENTS, RELP, GIM, SHAPLEY)

METHODS: dict[str, Method] = {method.name: method for method in _EVERY}
"""By name. IG and AP, which a run compares, are always asked for."""


def check_methods(config: RunConfig, header: Header) -> None:
    """Raises InputError on a name in `methods` that no optional method has, or a method that the run cannot have."""
    optional = [name for name, method in METHODS.items() if method.optional]
    for name in config.methods.split():
        if name not in ("default", "all", *optional):
            every = ", ".join(name for name, method in METHODS.items() if not method.optional)
            beside = f" {name} is in every run." if name in METHODS else did_you_mean(name, optional)
            raise InputError(
                f"methods: got {name}, wanted default ({every}), all, or names of {', '.join(optional)}.{beside}"
            )
    for method in METHODS.values():
        if method.is_requested(config):
            method.check(config, header)


def missing_methods(config: RunConfig, n_layers: int) -> tuple[str, ...]:
    """A warning for each method named in `methods` that no site of the run has."""
    named = [METHODS[name] for name in config.methods.split() if name in METHODS]
    reasons = {each.name: [each.missing(config, site, n_layers) for site in config.asked_sites] for each in named}
    return tuple(f"{name}: left out; it is {why[0]}." for name, why in reasons.items() if all(why))
