"""Queries, keys and values against plain hooks, one head at a time; the QK fix where it is exact; what is refused."""

import pytest
import torch
from helpers.checkpoints import save_checkpoint
from helpers.opened import qk_patching
from helpers.reference import Reference

from igap import PromptPair, load_model
from igap.attribution.activation_patching import patch_components
from igap.attribution.attribution_patching import estimate_patches
from igap.attribution.qk_patching import NoNodesError
from igap.engine.open_pairs import contrast

# float64; transformers computes Llama's RMS norms in float32.
MODELS = [
    ("gpt2", "processed", 1e-11),
    ("gpt2", "raw", 1e-11),
    ("gptj", "processed", 1e-11),
    ("llama", "raw", 1e-5),
    ("gpt_neox", "raw", 1e-11),
    ("grouped", "processed", 1e-5),
]
NODES = ("q", "k", "v")


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    """A Llama whose four heads share two key-value heads."""
    folder = tmp_path_factory.mktemp("grouped")
    save_checkpoint("llama", 3, folder, num_key_value_heads=2)
    return load_model(str(folder), dtype="float64")


@pytest.fixture(params=MODELS, ids=lambda m: "-".join(m[:2]), scope="module")
def case(request, small, grouped):
    architecture, processing, tolerance = request.param
    return grouped if architecture == "grouped" else small(architecture, processing), tolerance


@pytest.fixture(scope="module")
def maps(case, pair):
    return qk_patching(case[0], pair)


def hooked(reference, source, node, layer, head, heads, read):
    """Hooks that put one head's q, k or v of the other run in place, and read z of the heads that it acts through."""

    def replace(old, hook):
        new = old.clone()
        new[:, :, head] = reference.cache[source][hook.name][:, :, head]
        return new

    def keep(z, hook):
        read.append(z[0, :, heads].clone())
        return z

    return [(f"blocks.{layer}.attn.hook_{node}", replace), (f"blocks.{layer}.attn.hook_z", keep)]


def slow(reference, node, run="clean", source="corrupted"):
    """Exact effect, first order, and the QK fix of every head: one hooked pass each."""
    model = reference.model
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    n_nodes = reference.cache[run][f"blocks.0.attn.hook_{node}"].shape[2]
    found = {name: torch.zeros(n_layers, n_nodes, dtype=torch.float64) for name in ("ap", "atp", "atp_qk")}
    unpatched = reference.f(run).detach()
    for layer in range(n_layers):
        gradients = {}
        for kind in (node, "z"):
            name = f"blocks.{layer}.attn.hook_{kind}"
            leaf = reference.cache[run][name].clone().requires_grad_()
            (gradients[kind],) = torch.autograd.grad(reference.f(run, name, leaf), leaf)
        for head in range(n_nodes):
            heads = range(head * n_heads // n_nodes, (head + 1) * n_heads // n_nodes)
            read = []
            with torch.no_grad():
                hooks = hooked(reference, source, node, layer, head, heads, read)
                value = reference.metric(model.run_with_hooks(reference.tokens[run], fwd_hooks=hooks))
                found["ap"][layer, head] = value - unpatched
            name = f"blocks.{layer}.attn.hook_"
            moved = {
                node: (reference.cache[source][name + node] - reference.cache[run][name + node])[0, :, head],
                "z": read[0] - reference.cache[run][name + "z"][0, :, heads],
            }
            found["atp"][layer, head] = (moved[node] * gradients[node][0, :, head]).sum()
            found["atp_qk"][layer, head] = (moved["z"] * gradients["z"][0, :, heads]).sum()
    return found


def test_every_method_is_what_plain_hooks_give_one_head_at_a_time(case, maps, pair):
    model, tolerance = case
    reference = Reference(model, *pair.texts)
    for node in NODES:
        expected = slow(reference, node)
        for method, effect in expected.items():
            assert effect.abs().max() > 1e-3, (node, method)
            message = f"{node} {method}"
            torch.testing.assert_close(maps[node][method].effect, effect, atol=tolerance, rtol=0, msg=message)
        if node == "v":  # z is linear in it
            torch.testing.assert_close(expected["atp"], expected["atp_qk"], atol=tolerance, rtol=0)
        else:
            assert (expected["atp"] - expected["atp_qk"]).abs().max() > 1e-3, node


def test_denoising_brings_the_clean_query_into_the_corrupted_run(small, pair):
    model = small()
    found = qk_patching(model, pair, direction="denoising")["q"]
    expected = slow(Reference(model, *pair.texts), "q", "corrupted", "clean")
    for method, effect in expected.items():
        torch.testing.assert_close(found[method].effect, effect, atol=1e-11, rtol=0)


@pytest.mark.parametrize("node", NODES)
def test_in_the_last_layer_atp_star_is_the_magnitude_of_the_qk_fix(case, maps, node):
    _, tolerance = case
    found = maps[node]
    torch.testing.assert_close(found["atp_star"].effect[-1], found["atp_qk"].effect[-1].abs(), atol=tolerance, rtol=0)
    assert (found["atp_star"].effect[0] - found["atp_qk"].effect[0].abs()).abs().max() > 1e-4
    assert not found["atp_star"].signed


def test_the_qk_fix_is_exact_where_everything_after_z_is_linear(checkpoint, pair):
    """The last layer without MLP, its final norm divided by a constant: F is linear in z, and not in q and k."""
    model = load_model(str(checkpoint("gpt2")), dtype="float64")
    with torch.no_grad():
        model.blocks[2].mlp.out.original_component.weight.zero_()
    model.ln_final.hook_scale.add_hook(lambda scale, hook: torch.full_like(scale, 2.0))
    for node, found in qk_patching(model, pair).items():
        torch.testing.assert_close(found["atp_qk"].effect[2], found["ap"].effect[2], atol=1e-12, rtol=0, msg=node)
        assert node == "v" or (found["atp"].effect[2] - found["ap"].effect[2]).abs().max() > 1e-4, node
        assert (found["atp_qk"].effect[1] - found["ap"].effect[1]).abs().max() > 1e-3, node


def test_several_pairs_are_means_however_they_are_batched(small, pair):
    model = small()
    other = PromptPair(
        "After Anna and Tom went to the store, Tom gave a bottle of milk to",
        "After Anna and Tom went to the store, Anna gave a bottle of milk to", " Anna", " Tom", min_gap=0.0,
    )  # fmt: skip
    told = []
    together = qk_patching(model, [pair, other], on_progress=lambda done, total: told.append((done, total)))
    in_small_passes = qk_patching(model, [pair, other], batch_size=1)
    each = [qk_patching(model, one) for one in (pair, other)]
    for node in NODES:
        for method, found in together[node].items():
            expected = torch.stack([one[node][method].effect for one in each]).mean(0)
            torch.testing.assert_close(found.effect, expected, atol=1e-12, rtol=0)
            torch.testing.assert_close(in_small_passes[node][method].effect, expected, atol=1e-12, rtol=0)
            for of_pair, alone in zip(found.pairs, each, strict=True):
                torch.testing.assert_close(of_pair.effect, alone[node][method].effect, atol=1e-12, rtol=0)
    assert told == [(2, 2)]


def test_prompts_of_different_lengths_are_refused(small):
    longer = PromptPair(
        "John and Mary went to the store, Mary gave it to",
        "After John and Mary went to the store, John gave it to", " John", " Mary", min_gap=0.0, align="end",
    )  # fmt: skip
    with pytest.raises(NoNodesError, match="prompts of different lengths have no query for every query"):
        qk_patching(small(), longer)


def test_a_z_that_is_more_than_attention_of_q_k_and_v_is_refused(checkpoint, pair):
    """As of an attention that adds something of the residual stream to z."""
    model, streams = load_model(str(checkpoint("gpt2")), dtype="float64"), []
    model.hook_dict["blocks.1.hook_in"].add_hook(lambda stream, hook: streams.append(stream) or stream)
    model.hook_dict["blocks.1.attn.hook_z"].add_hook(lambda z, hook: z + streams[-1].mean(-1)[..., None, None])
    with pytest.raises(NoNodesError, match="the hooked queries, keys and values do not give the heads' z"):
        qk_patching(model, pair)


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_the_exact_and_the_plain_estimate_are_those_of_the_sites(case, maps, pair, direction):
    """By another way: through z. What the sites do not have is the QK fix."""
    model, tolerance = case
    found = maps if direction == "noising" else qk_patching(model, pair, direction=direction)
    with contrast(model, pair, direction=direction, sites=NODES) as question:
        for node in NODES:
            for name, method in (("ap", patch_components), ("atp", estimate_patches)):
                (expected,) = method(question, node)
                torch.testing.assert_close(found[node][name].effect, expected.effect, rtol=0, atol=tolerance)
