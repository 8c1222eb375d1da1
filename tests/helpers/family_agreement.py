"""How far igap is from plain Hugging Face modules, on a random checkpoint of one family."""

import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helpers.families import Family, Sizes, save
from helpers.plain import Plain, Whole
from igap import PromptPair, load_model
from igap.attribution.activation_patching import patch_components
from igap.attribution.integrated_gradients import integrate_path
from igap.components import SITES, Site
from igap.engine.contrast import Contrast
from igap.engine.open_pairs import contrast
from igap.inputs.prompts import tokenize

N_STEPS = 8
"""Quadrature nodes. Both sides take the same, so that few do."""

METHODS = ("ap", "ig")

Effects = dict[tuple[str, str], Tensor]
"""By site (heads, neurons) and method (ap, ig): `[layer, component]`, in logits."""


@dataclass(frozen=True)
class Agreement:
    """igap beside plain modules in one processing of the weights."""

    route: str
    """The route that igap takes by itself."""
    ours: dict[str, Effects]
    """By route: each that the model has."""
    plain: Effects

    def off(self, site: str, method: str) -> float:
        """Largest difference from plain modules, in logits, by whatever route."""
        return max((ours[site, method] - self.plain[site, method]).abs().max().item() for ours in self.ours.values())


def precisely(family: Family) -> contextlib.AbstractContextManager[Any]:
    """A block in which both sides compute in float64 throughout, where transformers can."""
    return Whole() if family.dtype == "float64" else contextlib.nullcontext()


def agreements(
    family: Family,
    folder: Path,
    pair: PromptPair,
    n_layers: int = 3,
    sites: Collection[Site] = SITES,
    compare: Callable[[Contrast, Contrast], None] = lambda fast, slow: None,
) -> dict[str, Agreement]:
    """By `model.processing`, for those in which the family is accepted.

    `compare` gets the raw model's two routes, opened with those of these sites that it has, where it has both.
    """
    save(family, folder, Sizes(n_layers))
    plain: Effects = {}
    result = {}
    for processing in ("raw", "processed"):
        if processing in family.refused:
            continue
        model = load_model(str(folder), processing=processing, dtype=family.dtype)
        plain = plain or plain_effects(family, folder, model, pair)
        both = processing == "raw"  # whatever the weights, the slower route is the same code
        absent = ("resid_mid",) if model.cfg.parallel_attn_mlp else ()
        own = [site for site in sites if site not in absent] if both else SITES
        with contrast(model, pair, sites=own) as question:
            route = question.backend.route
            ours = {route: effects(family, question)}
            if both and route != "hooks":
                with contrast(model, pair, route="hooks", sites=own) as slow:
                    ours["hooks"] = effects(family, slow)
                    compare(question, slow)
        result[processing] = Agreement(route, ours, plain)
    return result


def effects(family: Family, question: Contrast) -> Effects:
    """What igap says by the route of this contrast."""
    found: Effects = {}
    for site in family.sites:
        (ap,), (ig,) = patch_components(question, site), integrate_path(question, site, n_steps=N_STEPS)
        found[site, "ap"], found[site, "ig"] = ap.effect, ig.effect
    return found


def plain_effects(family: Family, folder: Path, model: Any, pair: PromptPair) -> Effects:
    """What plain modules say of the same tokens."""
    from transformers import AutoModelForCausalLM

    hf_model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, family.dtype), attn_implementation="eager"
    )
    tokens = tokenize(model, pair)
    plain = Plain(
        hf_model.eval().requires_grad_(False), tokens.clean, tokens.corrupted, tokens.answer, tokens.distractor
    )
    found: Effects = {}
    for site in family.sites:
        found[site, "ap"], found[site, "ig"] = plain.effects(site, N_STEPS)
    return found
