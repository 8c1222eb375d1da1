"""Every site, by position, against the model written out by hand and against code that we did not write."""

import dataclasses
import itertools

import captum.attr
import pytest
import torch
from helpers.by_hand import MLP_IN, ByHand
from helpers.checkpoints import save_checkpoint
from transformer_lens import patching
from transformers import AutoModelForCausalLM

from igap import Baseline, PromptPair, activation_patching, load_model
from igap.attribution.activation_patching import patch_components
from igap.attribution.attribution_patching import estimate_patches
from igap.attribution.integrated_gradients import integrate_path
from igap.components import PLACES, hook_name
from igap.engine.baselines import Request, reference_tokens
from igap.engine.open_pairs import contrast, open_pairs
from igap.inputs.prompts import tokenize
from igap.models.load import find_checkpoint

EXACT = 1e-10
"""float64, sums of a few thousand terms of size 1."""
CAPTUM = 1e-7
"""Captum keeps the weights of its nodes in float32."""

PAIR = PromptPair("After John and Mary gave Mary a", "After Tom and Mary gave John a", " John", " Mary", min_gap=0.0)
SAME_PASS = PromptPair("Then Anna and Tom gave Tom it", "Then John and Tom gave Anna dog", " Tom", " it", min_gap=0.0)
SHORTER = dataclasses.replace(PAIR, corrupted="After Anna gave Tom a")
BY_WORD = {  # who is whose partner, word by word, worked out by hand
    "end": (None, None, 0, 1, 2, 3, 4),
    "diff": (0, None, None, None, 2, 3, 4),
}

CASES = {
    "gpt2": ("gpt2", {"n_inner": 12}),
    "grouped": ("llama", {"intermediate_size": 12, "num_key_value_heads": 2}),
    "parallel": ("gpt_neox", {"intermediate_size": 12}),
    "sequential": ("gpt_neox", {"intermediate_size": 12, "use_parallel_residual": False}),
}
VECTORS = [site for site, place in PLACES.items() if place.is_vector]


pytestmark = pytest.mark.usefixtures("whole_in_float64")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {name: tmp_path_factory.mktemp(name) for name in CASES}
    for name, (architecture, settings) in CASES.items():
        save_checkpoint(architecture, 2, made[name], **settings)
    return made


@pytest.fixture(scope="module", params=CASES)
def case(request, folders):
    """A model of igap, the same weights on plain modules, and the sites that it has."""
    folder = str(folders[request.param])
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval().requires_grad_(False)
    sites = tuple(site for site in PLACES if (site, request.param) != ("resid_mid", "parallel"))
    return load_model(folder, processing="raw", dtype="float64"), plain, sites


def by_hand(plain, tokens):
    return ByHand(plain, tokens.answer, tokens.distractor)


def moved_to(hand, tokens, partners, direction):
    """The run that is patched, and by site and layer what its activations become."""
    here, there = (tokens.clean, tokens.corrupted) if direction == "noising" else (tokens.corrupted, tokens.clean)
    ends = hand.read(here)
    for place, other in hand.read(there).items():
        for i, j in enumerate(partners):
            if j is not None:
                ends[place][:, i] = other[:, j]
    return here, ends


def partners_of(pair, tokens, direction):
    n = {name: getattr(tokens, name).shape[1] for name in ("clean", "corrupted")}
    if n["clean"] == n["corrupted"]:
        return range(n["clean"])
    bos = n["clean"] - 7
    words = BY_WORD[pair.align]
    partners = [None if j is None else j + bos for j in words]
    if bos:
        partners = [None, None, 0, *partners[2:]] if pair.align == "end" else [0, *partners]
    if direction == "noising":
        return partners
    return [partners.index(j) if j in partners else None for j in range(n["corrupted"])]


@pytest.mark.parametrize(
    ("align", "direction"),
    [("error", "noising"), ("error", "denoising"), ("end", "denoising"), ("diff", "noising")],
)
def test_patching_each_position_is_one_forward_a_component_and_position(case, align, direction):
    """Of pairs that share a pass, too."""
    model, plain, sites = case
    pairs = [PAIR, SAME_PASS] if align == "error" else [dataclasses.replace(SHORTER, align=align)]
    pairs = pairs if direction == "noising" else pairs[:1]
    with open_pairs(model, pairs, sites=sites) as opened:
        ((_, question),) = opened.contrasts(direction=direction)
        assert question.backend.route == "suffix"
        hands = [by_hand(plain, tokens) for tokens in question.pairs]
        runs = [
            moved_to(hand, tokens, partners_of(pair, tokens, direction), direction)
            for hand, tokens, pair in zip(hands, question.pairs, pairs, strict=True)
        ]
        for row, site in zip(itertools.cycle(range(len(pairs))), sites, strict=False):  # of every other site one pair
            found = patch_components(question, site, positions="each")[row]
            here, ends = runs[row]
            spans = [[i] for i in range(here.shape[1])]
            for layer in range(2):
                expected = hands[row].patched(here, site, layer, ends[site, layer], [*spans, range(here.shape[1])])
                torch.testing.assert_close(found.effect[layer], expected[:-1], rtol=0, atol=EXACT)
                torch.testing.assert_close(found.together[layer], expected[-1], rtol=0, atol=EXACT)
                assert expected[-1].abs().max() > 1e-5


def test_patching_towards_zero_is_the_same_forwards(case):
    model, plain, sites = case
    spans = {"early": [0, 3], "late": [1, 5]}
    with contrast(model, PAIR, sites=sites, baseline="zero") as question:
        tokens = question.pairs[0]
        run = by_hand(plain, tokens).read(tokens.clean)
        for site in sites:
            (found,) = patch_components(question, site, positions=spans)
            for layer in range(2):
                end = torch.zeros_like(run[site, layer])
                same_as_by_hand(found, plain, tokens, site, layer, end, spans)


def test_patching_towards_the_mean_is_the_same_forwards(small, pair):
    """Of the embedded model, whose tokenizer has the words of the generated prompts."""
    model, baseline = small("ioi-mini", "raw"), Baseline("mean", n=3)
    folder = find_checkpoint("ioi-mini")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval().requires_grad_(False)
    sites, spans = ("heads", "k", "resid_mid", "mlp_out"), {"early": [0, 3], "late": [10, 16]}
    with contrast(model, pair, sites=sites, baseline=baseline) as question:
        tokens = question.pairs[0]
        request = Request(model, question.pairs, question.clean, question.corrupted.activations, baseline)
        runs = [by_hand(plain, tokens).read(each) for each in reference_tokens(request)]
        for site in sites:
            (found,) = patch_components(question, site, positions=spans)
            for layer in (0, model.cfg.n_layers - 1):
                end = torch.stack([run[site, layer] for run in runs]).mean(0)
                same_as_by_hand(found, plain, tokens, site, layer, end, spans)


def same_as_by_hand(found, plain, tokens, site, layer, end, spans):
    """Noising of the spans and of all positions."""
    asked = [*spans.values(), range(tokens.clean.shape[1])]
    expected = by_hand(plain, tokens).patched(tokens.clean, site, layer, end, asked)
    torch.testing.assert_close(found.effect[layer], expected[:-1], rtol=0, atol=EXACT)
    torch.testing.assert_close(found.together[layer], expected[-1], rtol=0, atol=EXACT)
    assert expected.abs().max() > 1e-5


def test_gradients_of_each_position_are_plain_autograds(case):
    """Denoising; noising is what Captum is compared with."""
    model, plain, sites = case
    pairs, direction = [PAIR, SAME_PASS], "denoising"
    with open_pairs(model, pairs, sites=sites) as opened:
        ((_, question),) = opened.contrasts(direction=direction)
        assert question.backend.route == "suffix"
        hands = [by_hand(plain, tokens) for tokens in question.pairs]
        runs = [
            moved_to(hand, tokens, range(tokens.clean.shape[1]), direction)
            for hand, tokens in zip(hands, question.pairs, strict=True)
        ]
        first_orders = [hand.first_orders(*run) for hand, run in zip(hands, runs, strict=True)]
        for site in sites:
            atp = estimate_patches(question, site, positions="each")
            ig = integrate_path(question, site, positions="each", n_steps=5)
            for row, (hand, (here, ends)) in enumerate(zip(hands, runs, strict=True)):
                for layer in range(2):
                    end, slopes = ends[site, layer], first_orders[row][site, layer]
                    integrals = hand.integrated(here, site, layer, end, 5)
                    torch.testing.assert_close(atp[row].effect[layer], slopes, rtol=0, atol=EXACT)
                    torch.testing.assert_close(atp[row].together[layer], slopes.sum(0), rtol=0, atol=EXACT)
                    torch.testing.assert_close(ig[row].effect[layer], integrals, rtol=0, atol=CAPTUM)
                    torch.testing.assert_close(ig[row].together[layer], integrals.sum(0), rtol=0, atol=CAPTUM)
                    assert slopes.abs().max() > 1e-5
                    (whole,) = (
                        hand.patched(here, site, layer, end, [range(here.shape[1])]) if site in VECTORS else (None,)
                    )
                    if whole is not None:
                        torch.testing.assert_close(ig[row].layer_effect[layer], whole[0], rtol=0, atol=EXACT)


def test_ig_of_one_vector_a_layer_is_its_single_path_and_its_patch(case):
    """By completeness: what one vector does along the path is what it does at its end."""
    model, _, sites = case
    with contrast(model, PAIR, sites=sites) as question:
        for site in set(VECTORS) & set(sites):
            (ap,) = patch_components(question, site)
            (joint,), (single,) = (
                integrate_path(question, site, path=path, n_steps=60) for path in ("joint", "single")
            )
            assert ap.effect.shape == (2, 1)
            assert ap.effect.abs().max() > 1e-3
            torch.testing.assert_close(joint.effect, ap.effect, rtol=1e-4, atol=1e-6)  # what 60 nodes leave
            torch.testing.assert_close(single.effect, joint.effect, rtol=0, atol=CAPTUM)
            (coarse,) = integrate_path(question, site, n_steps=2)
            torch.testing.assert_close(coarse.effect[:, 0] - coarse.delta, ap.effect[:, 0], rtol=0, atol=CAPTUM)


def test_ig_of_each_site_is_captums_layer_class_by_position(case):
    """Captum walks from `baselines` to `inputs` in the run of `inputs`: our path backwards, hence the sign."""
    model, _, sites = case
    tokens = tokenize(model, PAIR)

    def f(rows):
        logits = model(rows)
        return logits[:, -1, tokens.answer] - logits[:, -1, tokens.distractor]

    with contrast(model, PAIR, sites=sites) as question:
        maps = {site: integrate_path(question, site, n_steps=6, positions="each")[0] for site in sites}
    for site, ours in maps.items():
        if site == "resid_mid":  # where the bridge's hook is not on the stream
            continue
        for layer in range(2):
            method = captum.attr.LayerIntegratedGradients(f, model.hook_dict[hook_name(site, layer)])
            theirs = method.attribute(tokens.clean, tokens.corrupted, n_steps=6)[0]
            theirs = theirs.flatten(1).unflatten(1, (ours.effect.shape[2], -1)).sum(-1)
            torch.testing.assert_close(ours.effect[layer], -theirs, rtol=0, atol=CAPTUM)


# TransformerLens' functions, and whether their last axis is one of heads.
BY_POSITION = {
    "resid_pre": patching.get_act_patch_resid_pre,
    "resid_mid": patching.get_act_patch_resid_mid,
    "attn_out": patching.get_act_patch_attn_out,
    "mlp_out": patching.get_act_patch_mlp_out,
    "heads": patching.get_act_patch_attn_head_out_by_pos,
    "q": patching.get_act_patch_attn_head_q_by_pos,
    "k": patching.get_act_patch_attn_head_k_by_pos,
    "v": patching.get_act_patch_attn_head_v_by_pos,
}
ALL_POSITIONS = {
    "heads": patching.get_act_patch_attn_head_out_all_pos,
    "q": patching.get_act_patch_attn_head_q_all_pos,
    "k": patching.get_act_patch_attn_head_k_all_pos,
    "v": patching.get_act_patch_attn_head_v_all_pos,
}
TINY = PromptPair("John gave Mary", "Tom gave John", " John", " Mary", min_gap=0.0)


class Theirs:
    """TransformerLens' patching: the run of its "clean" cache goes into its "corrupted" tokens, which is denoising."""

    def __init__(self, model, direction):
        self.model, tokens = model, tokenize(model, TINY)
        self.answer, self.distractor = tokens.answer, tokens.distractor
        self.tokens, other = tokens.corrupted, tokens.clean
        if direction == "noising":
            self.tokens, other = other, self.tokens
        with torch.no_grad():
            self.cache = model.run_with_cache(other)[1]

    def metric(self, logits):
        return logits[0, -1, self.answer] - logits[0, -1, self.distractor]

    def effect(self, function, **options):
        with torch.no_grad():
            values = function(self.model, self.tokens, self.cache, self.metric, **options)
            return values - self.metric(self.model(self.tokens))


@pytest.mark.parametrize(
    ("name", "processing", "direction"),
    [("gpt2", "processed", "noising"), ("grouped", "raw", "denoising"), ("parallel", "processed", "denoising")],
)
def test_float32_patching_is_transformer_lens_own(folders, name, processing, direction):
    model = load_model(str(folders[name]), processing=processing)
    theirs = Theirs(model, direction)
    sites = [site for site in BY_POSITION if (site, name) != ("resid_mid", "parallel")]
    with contrast(model, TINY, sites=sites, direction=direction) as question:
        each = {site: patch_components(question, site, positions="each")[0].effect for site in sites}
        every = {site: patch_components(question, site)[0].effect for site in ALL_POSITIONS}
    for site, ours in each.items():
        expected = theirs.effect(BY_POSITION[site])
        expected = expected[:, :, None] if site in VECTORS else expected
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5, msg=site)
        assert ours.abs().max() > 1e-3, site
    for site, ours in every.items():
        torch.testing.assert_close(ours, theirs.effect(ALL_POSITIONS[site]), rtol=0, atol=1e-5, msg=site)
    if name == "grouped":
        assert each["v"].shape[2] == 2  # key-value heads, as TransformerLens sweeps them


def test_resid_mid_is_the_stream_and_not_what_a_hook_of_the_bridge_changes_there(folders):
    """The bridge's hook_resid_mid is on the MLP's input: a hook that returns another tensor leaves the stream alone.

    TransformerLens' own function reaches the stream, because it writes into the tensor that both of them are.
    """
    model = load_model(str(folders["gpt2"]), processing="raw", dtype="float64")
    plain = AutoModelForCausalLM.from_pretrained(folders["gpt2"], dtype=torch.float64).eval().requires_grad_(False)
    tokens = tokenize(model, TINY)
    hand = by_hand(plain, tokens)
    here, ends = moved_to(hand, tokens, range(tokens.clean.shape[1]), "noising")

    def returned(activation, index, source):
        return patching.layer_pos_patch_setter(activation.clone(), index, source)

    theirs = Theirs(model, "noising").effect(patching.get_act_patch_resid_mid, patch_setter=returned)
    ours = activation_patching(model, TINY, "resid_mid", positions="each").effect[..., 0]
    spans = [[i] for i in range(here.shape[1])]
    stream, read = (
        torch.stack([hand.patched(here, site, layer, ends[site, layer], spans)[:, 0] for layer in range(2)])
        for site in ("resid_mid", MLP_IN)
    )
    torch.testing.assert_close(ours, stream, rtol=0, atol=EXACT)
    torch.testing.assert_close(theirs.double(), read, rtol=0, atol=1e-6)  # they keep their results in float32
    assert (stream - read).abs().max() > 0.1
