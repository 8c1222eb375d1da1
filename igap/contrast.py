"""The question every method asks: what happens to F when a site moves from one activation to another?

`contrast` borrows the model, makes the two runs, and fixes direction and baseline; a method then only needs
`Contrast.function` and the two ends of the path.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap import baselines
from igap.baselines import Activations, Baseline, BaselineKind
from igap.errors import InputError
from igap.forward import Route, SiteFunction, choose_route, site_function
from igap.prompts import PromptPair, TokenPair, tokenize
from igap.runs import Run, frozen, record
from igap.sites import SITES, Site

Direction = Literal["noising", "denoising"]


@dataclass(frozen=True, eq=False)
class Contrast:
    """A run, and for each site and layer the activation it has and the one it is moved to."""

    model: TransformerBridge
    pair: TokenPair
    clean: Run
    corrupted: Run
    around: Run
    """The run the site is changed in: clean when noising, corrupted when denoising."""
    replacement: Activations
    """a' for every site, one tensor a layer."""
    route: Route

    @property
    def gap(self) -> float:
        """D = F(clean) - F(corrupted), in logits, whatever the direction and baseline."""
        return self.clean.logit_diff - self.corrupted.logit_diff

    @property
    def n_layers(self) -> int:
        """Blocks of the model."""
        return len(self.around.residual)

    def n_components(self, site: Site) -> int:
        """Components of the site in one layer. Raises ValueError on a site that there is not."""
        if site not in SITES:
            raise InputError(f"site: got {site!r}, wanted one of {', '.join(SITES)}.")
        return self.around.activations[site][0].shape[2]

    def function(self, site: Site, layer: int) -> SiteFunction:
        """F as a function of this site's activation in this layer."""
        return site_function(self.model, self.pair, self.around, site, layer, self.route)

    def ends(self, site: Site, layer: int) -> tuple[Tensor, Tensor]:
        """The path's start a (in the run) and end a' (its replacement), each `[1, pos, ...]`."""
        return self.around.activations[site][layer], self.replacement[site][layer]


@contextmanager
def contrast(
    model: TransformerBridge,
    pair: PromptPair,
    *,
    baseline: BaselineKind | Baseline = "corrupted",
    direction: Direction = "noising",
    route: Route | None = None,
) -> Iterator[Contrast]:
    """The contrast of a prompt pair, with the model frozen meanwhile and given back unchanged.

    `direction="denoising"` is the mirror, clean activations into the corrupted run, and takes the `corrupted`
    baseline only. `route=None` chooses the faster one that is right for this model.
    """
    baseline = baseline if isinstance(baseline, Baseline) else Baseline(baseline)
    if direction not in ("noising", "denoising"):
        raise InputError(f"direction: got {direction!r}, wanted noising or denoising.")
    if route not in (None, *get_args(Route)):
        raise InputError(f"route: got {route!r}, wanted blocks, hooks or None.")
    if direction == "denoising" and baseline.kind != "corrupted":
        raise InputError(
            f"baseline: got {baseline.kind!r} with direction=denoising, which moves the corrupted run towards "
            "the clean one and takes no other end. Use baseline=corrupted or direction=noising."
        )
    tokens = tokenize(model, pair)
    with frozen(model):
        clean = record(model, tokens.clean, tokens, name="clean")
        corrupted = record(model, tokens.corrupted, tokens, name="corrupted")
        if direction == "noising":
            around = clean
            replacement = baselines.activations(baselines.Request(model, tokens, clean, corrupted, baseline))
        else:
            around, replacement = corrupted, clean.activations
        yield Contrast(
            model=model,
            pair=tokens,
            clean=clean,
            corrupted=corrupted,
            around=around,
            replacement=replacement,
            route=route or choose_route(model, tokens, clean, corrupted),
        )
