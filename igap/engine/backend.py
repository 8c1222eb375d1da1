"""The route by which F is computed: from the weights where they give what the whole model gives, or with hooks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.components import Site
from igap.config import RunConfig
from igap.engine.activations import ForwardPass
from igap.engine.decoder import Decoder, UnknownDecoderError, read, unknown
from igap.engine.forward import Suffix
from igap.engine.hooks import Hooks
from igap.engine.metrics import Readout, show_logits
from igap.models.families import architecture_of
from igap.models.load import Header

_TOKENS_A_PASS = 512
"""A whole model holds [query, key] scores of every head: long prompts go one by one."""

Route = Literal["suffix", "hooks"]

Engine = Suffix | Hooks
"""F of some pairs by one of the two routes, as a function of what changes in their base run."""


@dataclass(frozen=True, eq=False)
class Backend:
    """The route by which F is computed, and why it is this one."""

    decoder: Decoder | None
    """The weights that `suffix` multiplies with; None for `hooks`."""
    reason: str
    """Why this route, in a few words."""

    @property
    def route(self) -> Route:
        """`suffix` or `hooks`."""
        return "hooks" if self.decoder is None else "suffix"

    def engine(self, model: TransformerBridge, readout: Readout, base: ForwardPass, first: int) -> Engine:
        """F as a function of a site changed in the run `base` of these pairs, from position `first` on."""
        if self.decoder is None:
            return Hooks(model, readout, base, first)
        return Suffix(self.decoder, readout, base, first)


HOOKS = Backend(None, "asked for")
"""The slow route, which every model has."""


def no_weights(config: RunConfig, header: Header) -> str:
    """Why F of a run's model is not computed from its weights, as far as its files tell; empty where it may be."""
    if config.model.dtype == "bfloat16":
        return "bfloat16 rounds too much for the weights alone; model.dtype=float32 does it"
    return unknown(architecture_of(header.config), header.config)


def choose_backend(
    model: TransformerBridge, readout: Readout, base: ForwardPass, others: Mapping[Site, Sequence[Tensor]], first: int
) -> Backend:
    """The `suffix` route where the weights alone give what the whole model gives, otherwise the `hooks` route.

    What `decoder.read` knows is still tried against the whole model, on the sites of the run in layer 0, with its
    activations and `others` (of one pair): the neurons' rows go through the attention of every later block, the heads'
    through every MLP. So what is not in the weights (a cap on the logits, a hook somebody left) is noticed.
    """
    if base.residual[0].dtype == torch.bfloat16:
        return Backend(None, "bfloat16 rounds too much to compare it with the whole model")
    try:
        decoder = read(model)
    except UnknownDecoderError as unknown:
        return Backend(None, str(unknown))
    if not readout.is_logit_diff:  # a probability near 0 or 1 hides what a logit shows
        readout = replace(readout, metrics=(*readout.metrics, *show_logits(readout).metrics))
    suffix, hooks = Suffix(decoder, readout, base, first), Hooks(model, readout, base, first)
    rows = {
        site: torch.stack([a[:, first:] for a in (base.activations[site][0], others[site][0])], 1)
        for site in base.activations
    }
    each = [(site, row) for site, both in rows.items() for row in both.unbind(1)]
    at_once = max(1, _TOKENS_A_PASS // base.tokens.shape[1])
    with torch.no_grad():
        ours = [suffix.function(site, 0)(both) for site, both in rows.items()]
        parts = [_in_layer_0(hooks, each[start : start + at_once]) for start in range(0, len(each), at_once)]
    theirs = torch.cat(parts, 1).split(2, 1)
    for mine, other in zip(torch.cat(ours), torch.cat(theirs), strict=True):  # metrics of any size
        difference = (mine - other).abs().max().item()
        if not difference <= rounding(other):
            return Backend(None, f"its weights alone give F off by {difference:.2g} logits")
    return Backend(decoder, "the weights alone give what the whole model gives")


def _in_layer_0(hooks: Hooks, rows: Sequence[tuple[Site, Tensor]]) -> Float[Tensor, "question row"]:
    """F by the whole model with a site of layer 0, another in each row, at these activations."""

    def put(site: Site, own: Tensor) -> Tensor:
        each = [row if changed == site else own[:, index] for index, (changed, row) in enumerate(rows)]
        return torch.stack(each, 1)

    return hooks.with_changes({(site, 0): partial(put, site) for site, _ in rows}, len(rows))


def rounding(logits: Tensor) -> float:
    """How far rounding may put logits, or F, off: sums over d_model and the depth, so a thousand of their roundings."""
    return 1000 * torch.finfo(logits.dtype).eps * max(1.0, logits.abs().max().item())
