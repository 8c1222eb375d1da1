"""Attribution methods: each is one function from a model and a prompt pair to an AttributionMap."""

from igap.attribution.activation_patching import activation_patching
from igap.attribution.atp_star import atp_star
from igap.attribution.attribution_patching import attribution_patching
from igap.attribution.integrated_gradients import integrated_gradients
from igap.attribution.maps import AttributionMap

__all__ = ["AttributionMap", "activation_patching", "atp_star", "attribution_patching", "integrated_gradients"]
