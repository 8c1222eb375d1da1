"""Direct effects at positions and spans, against the model written out by hand."""

import pytest
import torch
from helpers.by_hand import ByHand, ForcedByHand
from helpers.checkpoints import save_beside
from helpers.opened import follow

from igap import InputError, PromptPair, activation_patching, direct_effect
from igap.analyses.direct_effect.plots import direct_scatter
from igap.cli.compose import compose_one
from igap.inputs.prompts import tokenize

EXACT = 1e-10
PAIR = PromptPair("After John and Mary gave Mary a", "After Tom and Mary gave John a", " milk", " dog", min_gap=0.0)
SPANS = {"early": [1, 4], "end": [5, 7], "before": [2, 6]}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A small GPT-2 of igap, and the same weights on plain modules."""
    return save_beside(tmp_path_factory.mktemp("gpt2"), "gpt2", n_inner=12)


def direct_by_hand(hand, plain, here, there, site, layer, component, span):
    """F with what a component writes at a span added to the stream after the last block, minus F."""
    start, end = (hand.read(tokens)[site, layer][0, :, component] for tokens in (here, there))
    block = plain.transformer.h[layer]
    weight = {"heads": block.attn.c_proj.weight, "neurons": block.mlp.c_proj.weight}.get(site)
    moved = end - start
    if weight is not None:
        d = moved.shape[1]
        moved = moved @ weight[component * d : (component + 1) * d]

    def add(at, of, activation):
        if (at, of) == ("resid_post", len(plain.transformer.h) - 1):
            activation = activation.clone()
            activation[:, span, 0] += moved[span]
        return activation

    with torch.no_grad():
        return (hand.f(here, add) - hand.f(here)).item()


@pytest.mark.parametrize("answer", [" milk", " milk dog"])
@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("site", ["heads", "neurons", "attn_out", "mlp_out"])
def test_a_span_has_the_direct_effect_of_the_positions_in_it_that_f_is_read_at(case, site, direction, answer):
    """Of an answer of two tokens there are two such positions, and two spans that hold one each."""
    model, plain = case
    pair = PromptPair(PAIR.clean, PAIR.corrupted, answer, " dog", min_gap=0.0)
    tokens = tokenize(model, pair, several=True)
    forced = answer != " milk"
    n = tokens.clean.shape[1]
    assert n == 8 + forced
    hand = ByHand(plain, tokens.answers[0], tokens.distractors[0])
    if forced:
        hand = ForcedByHand(plain, [*tokens.forced, *tokens.answers])
    spans = SPANS | ({"added": [8]} if forced else {})
    here, there = (tokens.clean, tokens.corrupted) if direction == "noising" else (tokens.corrupted, tokens.clean)
    asked = {"direction": direction, "metric": "logprob" if forced else "logit_diff", "positions": spans}
    effects = direct_effect(model, pair, site, **asked)
    assert effects.total.spans == effects.direct.spans == (("end", "added") if forced else ("end",))
    assert effects.left_out == ("early", "before")
    whole = activation_patching(model, pair, site, **asked)
    for place, span in enumerate(effects.direct.spans):
        total = whole.effect[:, whole.spans.index(span)]
        torch.testing.assert_close(effects.total.effect[:, place], total, rtol=0, atol=EXACT)
        for layer, component in ((0, 0), (1, -1), (2, 0)):
            component %= total.shape[1]
            read = [position for position in spans[span] if position >= 7]
            expected = direct_by_hand(hand, plain, here, there, site, layer, component, read)
            assert effects.direct.effect[layer, place, component].item() == pytest.approx(expected, abs=EXACT)
    assert effects.direct.effect.abs().max() > 1e-4


def test_by_each_position_there_is_the_last_one_and_the_others_are_said_to_be_left_out(case):
    model, _ = case
    effects, last = (direct_effect(model, PAIR, positions=each) for each in ("each", "last"))
    torch.testing.assert_close(effects.direct.effect[:, 0], last.direct.effect, rtol=0, atol=EXACT)
    torch.testing.assert_close(effects.total.effect[:, 0], last.total.effect, rtol=0, atol=EXACT)
    torch.testing.assert_close(effects.direct.together, direct_effect(model, PAIR).direct.effect, rtol=0, atol=EXACT)
    assert effects.direct.position_interaction is effects.total.position_interaction is None
    assert effects.names[:2] == ["0.0 at 7 a", "0.1 at 7 a"]
    assert (len(effects.left_out), effects.left_out[1], last.left_out) == (7, "1 After", ())
    assert effects.summary()["direct_effect/n_left_out"] == 7
    assert "direct_effect/n_left_out" not in last.summary()
    assert all(" at 7 a " in part for line in effects.sentences()[:2] for part in line.partition(": ")[2].split(", "))
    assert effects.sentences()[-1] == (
        "direct effects left out at 7 positions or spans (0 <|endoftext|>, 1 After, 2 John, 3 and, 4 Mary, ...): F is "
        "not read there, so that they are 0, all effects indirect"
    )
    assert len(last.sentences()) == 2
    table = effects.tables()["direct_effect"]
    assert (len(table), set(table["span"])) == (3 * 4, {"7 a"})
    assert "0.1 at 7 a: " in effects._repr_html_()
    _, right, _ = direct_scatter(effects, title="a model").axes
    assert [len(bars) for bars in right.containers] == [3, 3]


@pytest.mark.parametrize(("positions", "got"), [("diff", "diff"), ({"a": [1], "b": [2]}, "a, b")])
def test_positions_that_f_is_not_read_at_are_refused(case, positions, got):
    with pytest.raises(InputError, match=rf"^positions: got {got}, none of which holds a position that F is read at"):
        direct_effect(case[0], PAIR, positions=positions)


def test_a_span_that_holds_it_in_one_pair_only_is_0_in_the_other(small):
    model = small()
    longer = PromptPair(
        "After John and Mary gave Mary a dog", "After Tom and Mary gave John a dog", " milk", " dog", 0.0
    )
    asked = {"positions": {"last": [7], "first": [1]}}
    effects = direct_effect(model, [PAIR, longer], **asked)
    alone = direct_effect(model, PAIR, **asked)
    torch.testing.assert_close(effects.direct.effect, alone.direct.effect / 2, rtol=0, atol=1e-12)
    assert effects.left_out == ("first",)
    assert effects.total.pairs[1].spans == ("last",)


def test_a_run_finds_what_the_function_finds(small):
    model = small()
    config = compose_one(["sites=heads", "positions=each", "direction=denoising", "analyses=direct_effect"]).config
    expected = direct_effect(model, PAIR, positions="each", direction="denoising")
    ap = activation_patching(model, PAIR, positions="each", direction="denoising")
    found = follow("direct_effect", config, model, (PAIR,), {"heads": {"ap": ap}}, {})
    torch.testing.assert_close(found.direct.effect, expected.direct.effect, rtol=0, atol=0)
    torch.testing.assert_close(found.total.effect, expected.total.effect, rtol=0, atol=0)
    assert found.left_out == expected.left_out
