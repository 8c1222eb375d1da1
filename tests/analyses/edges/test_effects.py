"""Edges: against models written out by hand, sums that must be those of nodes, circuits, graph files, and refusals."""

import json

import numpy as np
import pytest
import torch
from helpers.by_hand import MLP_IN, ByHand
from helpers.checkpoints import save_beside, save_checkpoint
from helpers.families import FAMILIES, Sizes, save
from helpers.plain import Whole

from igap import InputError, PromptPair, direct_effect, edge_effects, load_model
from igap.analyses.edges.effects import SENDERS, circuit_values
from igap.analyses.edges.results import EdgeEffects, Shape, lines_of
from igap.attribution.attribution_patching import estimate_patches
from igap.attribution.conductance import integrate_inputs
from igap.attribution.integrated_gradients import integrate_path
from igap.components import parse_component
from igap.engine.open_pairs import contrast, open_pairs
from igap.inputs.mib import read_graph
from igap.inputs.prompts import tokenize

EXACT = 1e-10
"""float64, sums of a few thousand terms of size 1."""

PAIR = PromptPair("After John and Mary gave Mary a", "After Tom and Mary gave John a", " John", " Mary", min_gap=0.0)
CASES = {
    "gpt2": ("gpt2", {"n_inner": 12}),
    "grouped": ("llama", {"intermediate_size": 12, "num_key_value_heads": 2}),
    "parallel": ("gpt_neox", {"intermediate_size": 12}),
}
DOWN = {"gpt2": "c_proj", "llama": "down_proj", "gpt_neox": "dense_4h_to_h"}

pytestmark = pytest.mark.usefixtures("whole_in_float64")


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A model of igap, and the same weights as a model written out by hand, with the pair's tokens."""
    architecture, settings = CASES[request.param]
    model, plain = save_beside(tmp_path_factory.mktemp(request.param), architecture, **settings)
    tokens = tokenize(model, PAIR)
    return model, ByHand(plain, tokens.answer, tokens.distractor), tokens


def weight_of(hand, layer, head):
    """W_O of a head, `[d_head, d_model]`."""
    weight = hand.output(hand.blocks[layer]).weight
    weight = weight if hand.kind == "gpt2" else weight.T
    return weight.unflatten(0, (hand.n_heads, -1))[head]


def written(hand, run, sender):
    """What a sender writes in a run, `[1, pos, d_model]`, without what attention adds of itself."""
    site, layer, index = parse_component(sender)
    activation = run[site, layer][:, :, index]
    return activation @ weight_of(hand, layer, index) if site == "heads" else activation


def by_hand(hand, here, run, reader, moved):
    """F where one reader alone reads the residual stream moved by so much, minus F."""
    site, layer, index = ("logits", 2, 0) if reader == "logits" else parse_component(reader)

    def edit(where, at, activation):
        if at != layer:
            return activation
        if (site, where) in (("mlp_out", MLP_IN), ("logits", "resid_post")):
            return activation + moved[:, :, None]
        if site == where and site in "qkv":
            changed = hand.project(hand.blocks[layer], run["resid_pre", layer][:, :, 0] + moved)["qkv".index(site)]
            activation = activation.clone()
            activation[:, :, index] = changed[:, :, index]
        return activation

    with torch.no_grad():
        return (hand.f(here, edit) - hand.f(here)).item()


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_an_edge_is_its_reader_alone_seeing_what_its_sender_writes_moved(case, direction):
    """AP of every edge, and its slope, by differences of two small moves."""
    model, hand, tokens = case
    here, there = (tokens.clean, tokens.corrupted) if direction == "noising" else (tokens.corrupted, tokens.clean)
    run, ends = hand.read(here), hand.read(there)
    exact = edge_effects(model, PAIR, "ap", direction=direction)
    slope = edge_effects(model, PAIR, direction=direction)
    assert exact.readers == slope.readers
    assert exact.n_edges == slope.n_edges
    rng = np.random.default_rng(0)
    for column, sender in enumerate(exact.senders):
        moved = written(hand, ends, sender) - written(hand, run, sender)
        rows = (~exact.effect[:, column].isnan()).nonzero().flatten().tolist()
        assert [*map(exact.readers.__getitem__, rows)][-1] == "logits"
        for row in {*rng.choice(rows, 2), rows[0], rows[-1]}:
            reader = exact.readers[row]
            assert exact.effect[row, column] == pytest.approx(by_hand(hand, here, run, reader, moved), abs=EXACT)
            few = [by_hand(hand, here, run, reader, step * moved) / 2e-4 for step in (1e-4, -1e-4)]
            assert slope.effect[row, column] == pytest.approx(few[0] - few[1], abs=1e-6)
    sizes = exact.effect[~exact.effect.isnan()].abs()
    assert sizes.median() > 1e-4


def test_there_is_an_edge_wherever_something_is_read_later(case):
    model, hand, _ = case
    edges = edge_effects(model, PAIR)
    known = {(row.sender, row.reader) for row in edges.to_frame().itertuples()}
    assert len(known) == edges.n_edges
    for sender in edges.senders:
        site, layer, _ = parse_component(sender)
        for reader in edges.readers:
            read, at, _ = ("logits", 9, 0) if reader == "logits" else parse_component(reader)
            same = site == "heads" and read == "mlp_out" and at == layer and not hand.parallel
            assert ((sender, reader) in known) == (site == "resid_pre" or layer < at or same)
    assert {"0.1.k", "2.3.q", "L1.mlp_out", "logits"} <= set(edges.readers)
    n_shared = 2 if hand.kind == "llama" else 4
    assert sum(reader.endswith(".v") for reader in edges.readers) == 3 * n_shared


FEW = ("Gemma 2", "Granite", "OLMo 2", "Phi", "Qwen3")
"""Norms after attention, factors of what is added, norms of queries over all heads, one norm for both, biases."""


@pytest.fixture(scope="module", params=[*CASES, *FEW])
def any_model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    if request.param in CASES:
        save_checkpoint(CASES[request.param][0], 3, folder, **CASES[request.param][1])
    else:
        save(FAMILIES[request.param], folder, Sizes(n_layers=2))
    with Whole():
        yield load_model(str(folder), processing="raw", dtype="float64")


def test_edges_of_a_sender_sum_to_its_node(any_model):
    """By IG along its own path, by slopes, and along the inputs' path; a chain rule that knows nothing of edges."""
    sums = {
        method: edge_effects(any_model, PAIR, method, n_steps=6).of_senders() for method in ("ig", "atp", "ig_inputs")
    }
    with contrast(any_model, PAIR, sites=SENDERS) as question:
        is_linear = question.backend.decoder.blocks[0].post1(torch.ones(1)).equal(torch.ones(1))
        by_site = {
            site: {
                "ig": integrate_path(question, site, n_steps=6)[0].effect,
                "atp": estimate_patches(question, site)[0].effect,
            }
            | (
                {"ig_inputs": integrate_inputs(question, site, n_steps=6)[0].effect}
                if is_linear or site != "heads"
                else {}
            )
            for site in SENDERS
        }
    for site, nodes in by_site.items():
        for method, effect in nodes.items():
            for name, value in sums[method].items():
                of, layer, index = parse_component(name)
                if of == site:
                    # Captum has IG's weights in float32.
                    tolerance = 1e-7 * max(1.0, effect.abs().max().item()) if method == "ig" else EXACT
                    assert value == pytest.approx(effect[layer, index].item(), abs=tolerance), (method, name)
            assert effect.abs().max() > 1e-3


def test_an_edge_to_the_logits_is_the_direct_effect(any_model):
    """Which computes norms after attention, and was tried with later layers frozen by hand."""
    edges = edge_effects(any_model, PAIR, "ap", readers=["logits"])
    sums = edges.of_senders()
    for site in ("heads", "mlp_out"):
        direct = direct_effect(any_model, PAIR, site).direct
        assert [sums[name] for name in direct.names] == pytest.approx(direct.effect.flatten().tolist(), abs=EXACT)


def circuit_by_hand(hand, tokens, kept):
    """F where each reader sums what senders write: here of the edges that are kept, else in the corrupted run."""
    corrupted, clean = hand.read(tokens.corrupted), hand.read(tokens.clean)
    writes = {"L0.resid_pre": clean["resid_pre", 0][:, :, 0]}
    constant = torch.zeros(())
    positions = torch.arange(tokens.clean.shape[1])

    def read(reader):
        others = {name: written(hand, corrupted, name) for name in writes}
        return constant + sum(writes[name] if (name, reader) in kept else others[name] for name in writes)

    with torch.no_grad():
        for layer, block in enumerate(hand.blocks):
            seen = {}

            def at(site, activation, layer=layer, block=block, seen=seen):
                if site in "qkv":
                    n = activation.shape[2]
                    each = [
                        hand.project(block, read(f"{layer}.{i}.{site}"))["qkv".index(site)][:, :, i] for i in range(n)
                    ]
                    return torch.stack(each, 2)
                seen[site] = activation
                return activation

            hand._attention(block, clean["resid_pre", layer][:, :, 0], positions, at)
            heads = {f"{layer}.{i}": seen["heads"][:, :, i] @ weight_of(hand, layer, i) for i in range(hand.n_heads)}
            bias = hand.output(block).bias
            before, added = constant, torch.zeros(()) if bias is None else bias
            if not hand.parallel:
                writes |= heads
                constant = before + added
            neurons = hand._neurons(block, read(f"L{layer}.mlp_out"))
            mlp = {f"L{layer}.mlp_out": getattr(block.mlp, DOWN[hand.kind])(neurons)}
            writes |= heads | mlp
            constant = before + added
        final = read("logits")
        last = len(hand.blocks) - 1
        return hand.f(
            tokens.clean,
            lambda site, layer, activation: final[:, :, None] if (site, layer) == ("resid_post", last) else activation,
        ).item()


def test_a_circuit_s_f_is_that_of_readers_that_sum_what_they_read(case):
    model, hand, tokens = case
    edges = edge_effects(model, PAIR)
    there = ~edges.effect.isnan()
    torch.manual_seed(0)
    masks = [there, torch.zeros_like(there), *(there & (torch.rand(there.shape) < share) for share in (0.3, 0.8))]
    with open_pairs(model, PAIR, sites=SENDERS) as opened:
        values = circuit_values(opened, masks)
    assert values.circuits[:2] == pytest.approx((values.full, values.corrupted), abs=EXACT)
    assert abs(values.full - values.corrupted) > 0.1
    for mask, value in zip(masks[2:], values.circuits[2:], strict=True):
        pairs = [(edges.senders[column], edges.readers[row]) for row, column in mask.nonzero().tolist()]
        assert value == pytest.approx(circuit_by_hand(hand, tokens, set(pairs)), abs=EXACT)


def test_a_norm_after_attention_has_no_circuit(tmp_path):
    save(FAMILIES["Gemma 2"], tmp_path, Sizes())
    model = load_model(str(tmp_path), dtype="float64")
    edges = edge_effects(model, PAIR)
    with open_pairs(model, PAIR, sites=SENDERS) as opened:
        values = circuit_values(opened, [edges.circuit(5)])
    assert np.isnan(values.circuits[0])
    assert "a norm follows attention" in values.reason


def planted(n_kv_heads=2):
    """Edges of one layer of two heads; 0 but for those named."""
    shape = Shape(1, 2, n_kv_heads, 8, parallel=False)
    shared = [f"0.{i}.{site}" for site in "kv" for i in range(n_kv_heads)]
    readers = ("0.0.q", "0.1.q", *shared, "L0.mlp_out", "logits")
    senders = ("L0.resid_pre", "0.0", "0.1", "L0.mlp_out")
    effect = torch.full((len(readers), 4), torch.nan, dtype=torch.float64)
    effect[:, 0] = 0.0
    effect[-2, 1:3] = 0.0
    effect[-1] = 0.0
    edges = EdgeEffects("atp", effect, readers, senders, 1.0, "noising", "logit_diff", "logits", shape)
    for sender, reader, value in (
        ("0.0", "logits", -2.0),
        ("L0.resid_pre", "0.1.q", 9.0),  # not to be had before 0.1 is in
        ("L0.mlp_out", "logits", 1.0),
        ("0.1", "L0.mlp_out", -0.5),
        ("L0.resid_pre", "0.0.v", 0.25),
    ):
        effect[readers.index(reader), senders.index(sender)] = value
    return edges


def test_a_circuit_grows_from_the_logits_and_keeps_what_reaches_the_input():
    edges = planted()
    named = lambda n: {(edges.senders[c], edges.readers[r]) for r, c in edges.circuit(n).nonzero().tolist()}  # noqa: E731
    assert named(1) == named(2) == named(3) == set()  # 0.0, the MLP and 0.1 in it read nothing yet
    through_mlp = {("L0.mlp_out", "logits"), ("0.1", "L0.mlp_out"), ("L0.resid_pre", "0.1.q")}
    assert named(4) == through_mlp
    assert named(5) == through_mlp | {("0.0", "logits"), ("L0.resid_pre", "0.0.v")}
    assert len(named(1000)) == edges.n_edges == 13


def test_a_shared_key_leads_into_every_head_that_shares_it(tmp_path):
    edges = planted(n_kv_heads=1)
    row = edges.readers.index("0.0.k")
    edges.effect[row, 0] = -3.0
    # 0.0 is in, although 0.1, which shares the key, is not: it writes nothing there.
    assert lines_of(edges, edges.circuit(2)) == [
        ("L0.resid_pre", "0.0.k", "0.0", -3.0),
        ("0.0", "logits", "logits", -2.0),
    ]
    assert edges.circuit(2).nonzero().tolist() == [[row, 0], [edges.readers.index("logits"), 1]]
    graph = json.loads(edges.to_mib(2))
    assert {name: edge for name, edge in graph["edges"].items() if edge["score"] == 3.0} == {
        f"input->a0.h{head}<k>": {"score": 3.0, "in_graph": head == 0} for head in range(2)
    }
    file = tmp_path / "graph.json"
    file.write_text(edges.to_mib())
    read = read_graph(str(file), item="graph", n_layers=1, n_heads=2)
    assert len(read.edges) == 13
    assert all(edge["in_graph"] for edge in read.edges.values())
    assert read.edges["a0.h0->logits"]["score"] == 2.0
    assert read.in_graph["m0"]


def test_several_pairs_are_a_mean_and_any_metric_is_f(many, small):
    model = small()
    whole = edge_effects(model, many.pairs[:2], metric="logprob")
    each = [edge_effects(model, pair, metric="logprob") for pair in many.pairs[:2]]
    mean = torch.stack([edges.effect for edges in each]).mean(0)
    torch.testing.assert_close(whole.effect, mean, rtol=0, atol=1e-6, equal_nan=True)
    assert (whole.metric, whole.unit) == ("logprob", each[0].unit)
    assert whole.gap == pytest.approx(sum(edges.gap for edges in each) / 2)
    told = []
    few = edge_effects(
        model, many.pairs[0], "ap", readers=["logits", "1.0.q"], on_progress=lambda *parts: told.append(parts)
    )
    assert few.readers == ("1.0.q", "logits")
    assert told[-1][0] == told[-1][1]
    with pytest.raises(InputError, match=r"n_edges: got a map of 2 readers, wanted one of all"):
        few.circuit(3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"readers": ["9.9.q"]}, r"readers: got '9\.9\.q', wanted queries, keys, values, MLPs of this model"),
        ({"readers": ["0.0"]}, r"readers: got '0\.0', wanted"),
        ({"readers": []}, "readers: got none, wanted"),
        ({"metric": "js"}, "metric: got js with edges by atp into the clean run, where it is 0 and its gradient too"),
        ({"method": "atp_star"}, "method: got 'atp_star', wanted"),
        ({"n_steps": 5000, "method": "ig"}, r"n_steps: got 5000, wanted at most 2000"),
    ],
)
def test_what_it_cannot_do_is_refused(small, result, options, message):
    with pytest.raises(InputError, match=message):
        edge_effects(small(), result.pairs[0], **options)


def test_a_model_without_weights_that_the_engine_knows_is_refused(tmp_path):
    save_checkpoint("gptj", 1, tmp_path)
    with pytest.raises(InputError, match="whose edges cannot be computed: the engine has no form for GPTJForCausalLM"):
        edge_effects(load_model(str(tmp_path)), PAIR)
