"""RelP and GIM against plain modules whose backward passes were changed one by one, in float64."""

import contextlib
import copy

import pytest
import torch
from helpers.by_hand import ByHand
from helpers.checkpoints import save_beside
from helpers.plain import Whole
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo.modeling_olmo import OlmoLayerNorm

from igap import InputError, PromptPair, attribution_patching
from igap.attribution.maps import ignore
from igap.attribution.methods import METHODS
from igap.attribution.relevance import RULES
from igap.cli.compose import compose_one
from igap.components import PLACES
from igap.engine.open_pairs import contrast
from igap.engine.rules import hold_denominator
from igap.inputs.prompts import tokenize

EXACT = 1e-11
PAIR = PromptPair("After John and Mary gave Mary a", "After Tom and Mary gave John a", " John", " Mary", min_gap=0.0)
CASES = {
    "gpt2": ("gpt2", {"n_inner": 12}),
    "grouped": ("llama", {"intermediate_size": 12, "num_key_value_heads": 2}),
    "parallel": ("gpt_neox", {"intermediate_size": 12}),
}


pytestmark = pytest.mark.usefixtures("whole_in_float64")


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A model of igap, the same weights on plain modules, and the sites that it has."""
    architecture, settings = CASES[request.param]
    model, plain = save_beside(tmp_path_factory.mktemp(architecture), architecture, **settings)
    return model, plain, tuple(site for site in PLACES if (site, request.param) != ("resid_mid", "parallel"))


class Scale(torch.autograd.Function):
    """The same, with a gradient times a factor."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.factor * gradient, None


class TemperedSoftmax(torch.autograd.Function):
    """softmax, with the gradient of GIM's package."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward((x / 2).softmax(-1))
        return torch.nn.functional.softmax(x, -1)

    @staticmethod
    def backward(ctx, gradient):
        (tempered,) = ctx.saved_tensors
        return tempered * (gradient - (gradient * tempered).sum(-1, keepdim=True))


class Tempered(TorchFunctionMode):
    """A block in which softmax has that gradient."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.softmax:
            return TemperedSoftmax.apply(args[0])
        return function(*args, **(kwargs or {}))


class HeldNorm(nn.Module):
    """A layer norm or a root-mean-square norm whose denominator is a number."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        if isinstance(self.norm, nn.LayerNorm):
            x = x - x.mean(-1, keepdim=True)
            return (
                x / (x.square().mean(-1, keepdim=True) + self.norm.eps).sqrt().detach() * self.norm.weight
                + self.norm.bias
            )
        return x / (x.square().mean(-1, keepdim=True) + self.norm.variance_epsilon).sqrt().detach() * self.norm.weight


class Straight(nn.Module):
    """A nonlinearity as its input times a number."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return x * (self.function(x) / x).detach()


class Ruled(ByHand):
    """The model with one method's rules in its modules."""

    def __init__(self, plain, tokens, method):
        model = copy.deepcopy(plain)
        for name, module in list(model.named_modules()):
            parent = model.get_submodule(name.rpartition(".")[0])
            if isinstance(module, nn.LayerNorm | LlamaRMSNorm):
                setattr(parent, name.rpartition(".")[2], HeldNorm(module))
            elif name.endswith((".act", ".act_fn")) and method == "relp":
                setattr(parent, name.rpartition(".")[2], Straight(module))
        super().__init__(model, tokens.answer, tokens.distractor)
        self.method = method

    def f(self, tokens, edit=lambda site, layer, activation: activation):
        factors = {"q": 0.25, "k": 0.25, "v": 0.5} if self.method == "gim" else {}

        def scaled(site, layer, activation):
            return Scale.apply(edit(site, layer, activation), factors.get(site, 1.0))

        with Tempered() if self.method == "gim" else contextlib.nullcontext():
            return super().f(tokens, scaled)

    def _neurons(self, block, stream):
        neurons = super()._neurons(block, stream)
        return Scale.apply(neurons, 0.5) if self.kind == "llama" else neurons


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("name", RULES)
def test_it_is_the_gradient_of_modules_with_these_rules_at_every_site_and_position(case, name, direction):
    model, plain, sites = case
    tokens = tokenize(model, PAIR)
    hand, plainly = Ruled(plain, tokens, name), ByHand(plain, tokens.answer, tokens.distractor)
    here, there = (tokens.clean, tokens.corrupted)[:: 1 if direction == "noising" else -1]
    ends = plainly.read(there)
    config = compose_one(["positions=each", "methods=all"]).config
    assert hand.f(here).item() == pytest.approx(plainly.f(here).item())
    slopes = hand.first_orders(here, ends)
    with contrast(model, PAIR, sites=sites, direction=direction) as opened:
        for site in sites:
            slow = torch.stack([slopes[site, layer] for layer in range(3)])
            (made,) = METHODS[name].attribute(opened, site, config, ignore)
            assert slow.abs().max() > 1e-3
            torch.testing.assert_close(made.effect, slow, atol=EXACT, rtol=EXACT, msg=site)
            assert made.method == name


@pytest.mark.parametrize("name", RULES)
def test_forward_the_model_is_the_same_to_the_last_bit_and_stays_as_it_was(case, name):
    model, _, sites = case
    before = attribution_patching(model, PAIR).effect
    with contrast(model, PAIR, sites=sites) as opened:
        ruled = opened.with_rules(RULES[name])
        for site in sites:
            rows = opened.ends(site, 0)[1][:, None]
            torch.testing.assert_close(
                ruled.function(site, 0)(rows), opened.function(site, 0)(rows), atol=1e-12, rtol=0
            )
        assert not torch.equal(
            METHODS[name].attribute(opened, "heads", compose_one([]).config, ignore)[0].effect, before
        )
    assert torch.equal(attribution_patching(model, PAIR).effect, before)


def shifted(norm):
    """With weights and biases that are none of 0 and 1."""
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return norm.double()


def layer_norm(x, norm):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt().detach()


def rms_norm(x, epsilon):
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt().detach()


NORMS = {
    "LayerNorm": (nn.LayerNorm(6, eps=0.1), lambda x, n: layer_norm(x, n) * n.weight + n.bias),
    "RMSNorm": (nn.RMSNorm(6, eps=0.1), lambda x, n: rms_norm(x, n.eps) * n.weight),
    "Llama": (LlamaRMSNorm(6, eps=0.1), lambda x, n: rms_norm(x, n.variance_epsilon) * n.weight),
    "Gemma": (GemmaRMSNorm(6, eps=0.1), lambda x, n: rms_norm(x, n.eps) * (1 + n.weight)),
    "Olmo": (OlmoLayerNorm(6), lambda x, n: rms_norm(x - x.mean(-1, keepdim=True), 1e-5)),
    "Cohere": (
        CohereLayerNorm((4, 6), eps=0.1),
        lambda x, n: rms_norm(x - x.mean(-1, keepdim=True), n.variance_epsilon) * n.weight,
    ),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_of_any_family_is_linear_where_its_denominator_is_held(name):
    norm, by_hand = NORMS[name]
    norm = shifted(copy.deepcopy(norm))
    with Whole():
        for size in (1.0, 0.1):
            x = (size * torch.randn(2, 3, 5, 4, 6, dtype=torch.float64) + 0.5).requires_grad_()
            weight = torch.randn(6, dtype=torch.float64)
            values, slopes = zip(
                *(
                    (y, torch.autograd.grad((y * weight).sum(), x)[0])
                    for y in (hold_denominator(norm)(x), by_hand(x, norm))
                ),
                strict=True,
            )
            torch.testing.assert_close(values[0], norm(x), atol=0, rtol=0)
            torch.testing.assert_close(*values, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(*slopes, atol=1e-5, rtol=1e-5)
            true = torch.autograd.grad((norm(x) * weight).sum(), x)[0]
            assert (slopes[0] - true).abs().max() > 1e-2


def test_what_is_no_such_norm_is_refused():
    with pytest.raises(
        InputError, match=r"^methods: got relp or gim with a model whose Softmax is not linear with its"
    ):
        hold_denominator(nn.Softmax(-1))(torch.randn(2, 6))


@pytest.mark.parametrize("name", RULES)
def test_models_that_are_not_computed_from_their_weights_are_refused(small, checkpoint, pair, name):
    with (
        contrast(small("bloom"), pair) as opened,
        pytest.raises(
            InputError, match=r"^methods: got relp or gim with .*, wanted a model whose gradients can follow"
        ),
    ):
        METHODS[name].attribute(opened, "heads", compose_one([]).config, ignore)


def test_relp_follows_the_chord_of_a_saturated_unit_and_gim_a_saturated_softmax():
    from igap.bench import circuits

    effects = {}
    for circuit in ("saturation", "query"):
        made = circuits()[circuit]
        with contrast(made.load(), made.pair) as opened:
            for name in RULES:
                effects[circuit, name] = (
                    METHODS[name].attribute(opened, "heads", compose_one([]).config, ignore)[0].effect[0, 0]
                )
    assert effects["saturation", "relp"].item() == pytest.approx(
        circuits()["saturation"].truth.effects()["0.0"], abs=1e-9
    )
    assert abs(effects["saturation", "gim"]) < 1e-2
    assert effects["query", "gim"] < 10 * effects["query", "relp"] < 0
