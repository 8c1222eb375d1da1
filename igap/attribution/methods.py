"""The attribution methods of a run, in the order of the columns. docs/extending/method.md tells how to add one."""

from igap.attribution.activation_patching import METHOD as AP
from igap.attribution.atp_star import METHOD as ATP_STAR
from igap.attribution.attribution_patching import METHOD as ATP
from igap.attribution.integrated_gradients import METHOD as IG
from igap.attribution.method import Method

METHODS: dict[str, Method] = {method.name: method for method in (IG, AP, ATP, ATP_STAR)}
"""By name. IG and AP, which a run compares, are always asked for."""
