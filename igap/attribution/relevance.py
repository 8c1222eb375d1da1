"""Attribution patching with other rules than the derivative's in its one backward pass: (a' - a) . what it gives at a.

- `relp`: relevance patching (Rezaei Jafari et al. 2025, arXiv 2508.21258). Norms hold their denominator (LN-rule), a
  nonlinearity f passes on f(x) / x (Identity-rule), gate times up half of the gradient (Half-rule). These three are
  what the authors' code has set. The rule of their table that holds attention patterns (AH-rule) is not among them:
  softmax keeps its derivative.
- `gim`: gradient interaction modifications (Edin et al. 2025, arXiv 2505.17630), as the authors' package gim-explain
  has them set. Norms hold their denominator; the gradient of softmax is that of twice the temperature; what multiplies
  shares the gradient: values get 1/2, queries and keys 1/4, gate and up 1/2.

Caps of scores and logits keep their derivatives, and so does F.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from igap.attribution.attribution_patching import estimate_patches, no_gradient
from igap.attribution.maps import Advance, AttributionMap
from igap.attribution.method import Method
from igap.components import Site
from igap.config import RunConfig
from igap.engine.backend import no_weights
from igap.engine.contrast import Contrast
from igap.engine.rules import Rules
from igap.errors import InputError
from igap.models.load import Header

RULES = {
    "relp": Rules(identity=True, product=0.5),
    "gim": Rules(product=0.5, query_key=0.25, value=0.5, temperature=2.0),
}
"""By the method's name."""


def _attribute(name: str, contrast: Contrast, site: Site, config: RunConfig, advance: Advance) -> list[AttributionMap]:
    maps = estimate_patches(
        contrast.with_rules(RULES[name]),
        site,
        advance,
        positions=config.positions.value,
        batch_size=config.batch_size,
        memory_gib=config.memory_gib,
    )
    return [replace(made, method=name) for made in maps]


def _check(name: str) -> Callable[[RunConfig, Header], None]:
    """Raises InputError on a model whose gradients cannot follow rules."""

    def check(config: RunConfig, header: Header) -> None:
        if reason := no_weights(config, header):
            raise InputError(
                f"methods: got {name} of model.name={config.model.name}, wanted a model whose blocks the engine "
                f"computes from their weights: {reason}. Leave it out, or use another model."
            )

    return check


RELP, GIM = (
    Method(
        name,
        partial(_attribute, name),
        shared=True,
        optional=True,
        check=_check(name),
        needs_weights=True,
        missing=lambda config, site, n_layers: no_gradient(config),  # noqa: ARG005
    )
    for name in RULES
)
