import itertools
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.families import FAMILIES, WORDS, build, make_config, save
from helpers.family_agreement import METHODS, agreements, precisely

from igap import activation_patching, load_model
from igap.attribution.activation_patching import patch_components
from igap.attribution.attribution_patching import estimate_patches
from igap.components import PLACES, SITES
from igap.errors import InputError
from igap.models.load import read_header

STREAM = ("resid_pre", "attn_out", "mlp_out", "resid_post")
TAKEN = [name for name, family in FAMILIES.items() if len(family.refused) < 2]
REFUSED = [(name, processing) for name, family in FAMILIES.items() for processing in family.refused]
SWITCHES = [(name, setting) for name, family in FAMILIES.items() for setting in family.off]
TWO = [10, 15]
"""Positions at which vectors move."""
UNROTATED = ("opt", "xglm", "biogpt")
"""Models in which one vector added to all keys moves no softmax: their keys' biases do nothing."""


def rows_of_the_page():
    """The cells of each row of docs/families.md, by family and, for what is refused, processing."""
    text = (Path(__file__).parents[2] / "docs" / "families.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return [
        [first.removesuffix(" *"), *others] for first, *others in rows if first in FAMILIES or first[:-2] in FAMILIES
    ]


@pytest.fixture(scope="module")
def page():
    return rows_of_the_page()


def f(model):
    """Logit John - logit Mary after a prompt of 14 tokens; the two runs of a test differ in the model alone."""
    words = "After John and Mary went to the store , Mary gave a bottle to".split()
    with torch.no_grad():
        logits = model(torch.tensor([[WORDS.index(word) for word in words]])).logits[0, -1]
    return (logits[WORDS.index("John")] - logits[WORDS.index("Mary")]).item()


@pytest.mark.parametrize("name", TAKEN)
def test_effects_of_both_sites_are_those_of_plain_modules_by_every_route(name, tmp_path, pair, page):
    """Where there are two, whatever a route gives block by block is also what the whole model gives, at every site."""
    family, row = FAMILIES[name], next(row for row in page if row[0] == name)
    sites = PLACES if row[-2] == "suffix" else SITES
    n_layers = 3 if "sliding_window" in family.settings else 2  # a change in a query takes as many windows to the end
    with precisely(family):
        of_both = agreements(family, tmp_path, pair, n_layers, sites, routes_agree)
    for agreement in of_both.values():
        assert agreement.route == row[6]
        for site in family.sites:
            assert agreement.plain[site, "ap"].abs().max() > 0.01
            for method in METHODS:
                size = max(1.0, agreement.plain[site, method].abs().max().item())
                # Thousands of roundings of logits of size 1; Captum keeps its weights in float32, which rounds by 6e-8.
                rounding = 2e-5 if family.dtype == "float32" else 1e-12 if method == "ap" else 1e-7
                assert agreement.off(site, method) < rounding * size
        if "neurons" in family.sites:
            width = agreement.plain["neurons", "ap"].shape[1]  # columns that the MLP's last matrix reads
            assert agreement.ours[agreement.route]["neurons", "ap"].shape == (n_layers, width)
            assert read_header(str(tmp_path)).n_neurons == width


def routes_agree(suffix, hooks):
    """Gradients with a layer dropped, F where all layers change at once, and effects of every other site."""
    for site in SITES:
        gradients_and_changes_agree(suffix, hooks, site)
    others_agree(suffix, hooks)


def bent(weights, layer, activation):
    """The site's activations, each layer's and row's changed in another way."""
    weights = weights.view(1, -1, *[1] * (activation.ndim - 2))
    return activation + weights * torch.sin(activation + layer)


def gradients_and_changes_agree(suffix, hooks, site):
    by_route, changed = [], []
    for question in (suffix, hooks):
        found = question.gradients(site, [0], dropping=True)
        by_route.append({(layer, dropped): gradient for layer, dropped, gradient in found})
        weights = torch.linspace(-1, 2, 3, dtype=question.gap.dtype)[None, :, None, None]
        with torch.no_grad():
            changes = {(site, layer): partial(bent, weights, layer) for layer in range(question.n_layers)}
            changed.append(question.engine.with_changes(changes, 3))
    ours, whole = by_route
    layers = range(suffix.n_layers)
    later = {(layer, dropped) for dropped in layers for layer in range(dropped)}
    assert set(ours) == set(whole) == {(layer, None) for layer in layers} | later
    for place, gradient in whole.items():
        assert gradient.abs().max() > 1e-6
        torch.testing.assert_close(ours[place], gradient, rtol=0, atol=1e-12 + 1e-10 * gradient.abs().max())
    assert not torch.allclose(whole[0, None], whole[0, layers[-1]])
    torch.testing.assert_close(*changed, rtol=0, atol=1e-10)
    assert changed[0].std() > 1e-3


def others_agree(suffix, hooks):
    """Patches and gradients of every site that a run does not take apart, and what the stream is the sum of."""
    for question in (suffix, hooks):
        has = question.clean.activations
        for pre, attended, mlp, post in zip(*(has[site] for site in STREAM), strict=True):
            torch.testing.assert_close(pre + attended + mlp, post, rtol=0, atol=1e-12)
    sites = [site for site in suffix.clean.activations if site not in SITES]
    for site, by_method in by_whole_model(hooks, sites).items():
        positions = {"two": TWO} if PLACES[site].is_vector else "all"
        for method, whole in zip((patch_components, estimate_patches), by_method, strict=True):
            atol = 1e-12 + 1e-10 * whole.abs().max().item()
            # Patches by hooks one component at a time are left to streams and what a layer writes, which are few.
            both = method is estimate_patches or PLACES[site].is_vector
            for question in (suffix, hooks) if both else (suffix,):
                (ours,) = method(question, site, positions=positions)
                message = f"{site} {method.__name__} {question.backend.route}"
                torch.testing.assert_close(ours.effect.view_as(whole), whole, rtol=0, atol=atol, msg=message)
                assert ours.effect.abs().max() > 1e-6, message


def by_whole_model(hooks, sites):
    """Effects by patching, one row each of a single pass, and gradients times moves of another, `[layer, component]`.

    Vectors move at two positions: a whole stream that is replaced leaves nothing of the run.
    """
    layers, first = range(hooks.n_layers), hooks.first
    rows = [(site, layer, c) for site in sites for layer in layers for c in range(hooks.source[site][layer].shape[2])]
    leaves, moves = {}, {}
    for site, layer in itertools.product(sites, layers):
        move = (hooks.source[site][layer] - hooks.clean.activations[site][layer])[:, first:]
        there = torch.isin(torch.arange(first, first + move.shape[1]), torch.tensor(TWO))
        moves[site, layer] = move * (there[:, None, None] if PLACES[site].is_vector else 1)
        leaves[site, layer] = torch.zeros_like(move[:, None]).requires_grad_()

    def patch(site, layer, own):
        moved = own.clone()
        for row, (at_site, at_layer, component) in enumerate(rows):
            if (at_site, at_layer) == (site, layer):
                moved[:, row, :, component] += moves[site, layer][:, :, component]
        return moved

    with torch.no_grad():
        f = hooks.engine.with_changes({place: partial(patch, *place) for place in leaves}, len(rows) + 1)[0]
    plain = hooks.engine.with_changes({place: partial(torch.add, leaf) for place, leaf in leaves.items()}, 1)
    slopes = dict(zip(leaves, torch.autograd.grad(plain.sum(), list(leaves.values())), strict=True))
    made = {}
    for site in sites:
        effect = [f[row] - f[-1] for row, (at_site, *_) in enumerate(rows) if at_site == site]
        estimate = [(slopes[site, layer][:, 0] * moves[site, layer]).flatten(3).sum((0, 1, 3)) for layer in layers]
        made[site] = torch.stack(effect).view(len(layers), -1), torch.stack(estimate)
    return made


@pytest.mark.parametrize(("name", "processing"), REFUSED)
def test_what_is_not_taken_is_refused_in_one_line(name, processing, tmp_path):
    save(FAMILIES[name], tmp_path)
    with pytest.raises(InputError, match=r"^model\.[^\n]+\.$"):
        load_model(str(tmp_path), processing=processing, dtype=FAMILIES[name].dtype)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.sites == ("heads",)])
def test_neurons_of_experts_are_refused_in_one_line(name, tmp_path, pair):
    save(FAMILIES[name], tmp_path)
    model = load_model(str(tmp_path), processing="raw")
    with pytest.raises(InputError, match=r"^model\.name: [^\n]*experts[^\n]*\.$"):
        activation_patching(model, pair, "neurons")


@pytest.mark.parametrize(("name", "setting"), SWITCHES)
def test_each_setting_that_makes_a_family_matters(name, setting):
    family = FAMILIES[name]
    model, without = (build(family, **changed) for changed in ({}, {setting: family.off[setting]}))
    without.load_state_dict(model.state_dict(), strict=False)  # without a norm there are fewer weights
    assert abs(f(model) - f(without)) > 0.01


@pytest.mark.parametrize("name", FAMILIES)
def test_each_norm_and_bias_of_a_family_matters(name):
    from transformers import AutoModelForCausalLM

    family = FAMILIES[name]
    model = build(family)
    plain = dict(AutoModelForCausalLM.from_config(make_config(family)).named_parameters())
    kinds: dict[str, list[str]] = {}
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim == 1 and not (family.model_type in UNROTATED and parameter_name.endswith("k_proj.bias")):
            kinds.setdefault(re.sub(r"\.\d+\.", ".*.", parameter_name), []).append(parameter_name)
    with_all, randomised = f(model), {key: value.clone() for key, value in model.state_dict().items()}
    for names in kinds.values():
        model.load_state_dict({each: plain[each] for each in names}, strict=False)
        assert abs(f(model) - with_all) > 1e-3, names
        model.load_state_dict(randomised)


def test_the_page_lists_the_families_that_are_taken_and_what_is_refused(page):
    assert [row[0] for row in page if row[1] not in ("raw", "processed")] == TAKEN
    refused = [(name, *why) for name, family in FAMILIES.items() for why in family.refused.items()]
    assert [tuple(row) for row in page if row[1] in ("raw", "processed")] == refused
