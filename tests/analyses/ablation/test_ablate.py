"""Ablation against one prompt at a time with plain hooks, and its statistics by hand."""

import contextlib
import itertools
from functools import cache, partial
from itertools import islice

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.by_hand import ByHand
from helpers.checkpoints import save_beside, save_checkpoint
from helpers.plain import Whole
from scipy import stats

from igap.analyses.ablation.ablate import ablate, ablate_kinds, mcnemar
from igap.analyses.ablation.accuracy import batch_by_length, batch_rows
from igap.analyses.ablation.passes import HookedPasses, RestartedPasses, choose_passes
from igap.analyses.ablation.replacements import by_place, replacement
from igap.analyses.ablation.results import Ablations
from igap.components import hook_name, parse_component
from igap.engine.activations import borrow
from igap.errors import InputError
from igap.inputs.labelled_prompts import Prompt
from igap.models.load import EMBEDDED, load_model

REST = "gave a bottle of milk to"
NAMES = ("John", "Mary", "Tom", "Anna")
LONG = [
    Prompt(f"After {a} and {b} went to the store, {b} {REST}", f" {a}", f" {b}")
    for a, b in itertools.permutations(NAMES, 2)
]
SHORT = [Prompt(f"Then {a} and {b} gave it to", f" {a}", f" {b}") for a, b in itertools.permutations(NAMES, 2)]
PROMPTS = [prompt for two in zip(LONG, SHORT, strict=True) for prompt in two]
SOME = list(enumerate(PROMPTS))[::5]  # of both lengths; each passes through the model by itself
COMPONENTS = ("1.2", "0.3", "L1.N7")
SEED_OF_A_SHORT_ONE = next(seed for seed in range(9) if np.random.default_rng(seed).permutation(24)[0] % 2)


def token(model, word):
    return int(model.to_tokens(word, prepend_bos=False)[0, 0])


@cache
def unchanged(model, text):
    """Every activation of the model as it is, by the name of its hook."""
    with torch.no_grad():
        return model.run_with_cache(model.to_tokens(text))[1]


def activations(model, text, name):
    """Of the unchanged model: `[pos, component, ...]` of the component's site and layer."""
    site, layer, _ = parse_component(name)
    return unchanged(model, text)[hook_name(site, layer)][0]


def without(model, prompt, names, value, where=slice(None)):
    """Logits of one prompt with each component replaced by `value(name)`, `[pos, ...]` or what expands to that, at
    these positions."""
    given = {name: value(name) for name in names}

    def hook_of(name):
        index = parse_component(name)[2]

        def hook(activation, hook):
            activation = activation.clone()
            new = torch.as_tensor(given[name]).to(activation).expand_as(activation[:, :, index])
            activation[:, where, index] = new[:, where]
            return activation

        return hook

    hooks = [(hook_name(*parse_component(name)[:2]), hook_of(name)) for name in names]
    with torch.no_grad():
        return model.run_with_hooks(model.to_tokens(prompt.text), fwd_hooks=hooks)[0, -1]


@cache
def zeroed(model, prompt, names):
    """As `without`, with zeros everywhere."""
    return without(model, prompt, names, lambda name: 0.0)


def agrees(model, one, value_of):
    """Whether an AblationEffect is what plain hooks give, prompt by prompt."""
    for index, prompt in SOME:
        logits = without(model, prompt, one.components, lambda name: value_of(name, prompt))  # noqa: B023
        difference = float(logits[token(model, prompt.answer)] - logits[token(model, prompt.distractor)])
        assert one.outcomes.logit_diff[index] == pytest.approx(difference, abs=1e-10)
        assert one.outcomes.correct[index] == (int(logits.argmax()) == token(model, prompt.answer))


def reference_mean(model, name, by_position):
    """Of all prompts: the mean over prompts and positions, or of each position over the prompts that reach it."""
    index = parse_component(name)[2]
    each = [activations(model, prompt.text, name)[:, index] for prompt in PROMPTS]
    if not by_position:
        return torch.cat(each).mean(0)
    return torch.stack([torch.stack([a[i] for a in each if len(a) > i]).mean(0) for i in range(max(map(len, each)))])


POSITIONS = {  # by prompt, worked out by hand; 0 is the token before every prompt
    "last": lambda prompt: {"": [16 if prompt in LONG else 7]},
    "roles": lambda prompt: {" at IO": [2], " at S1": [4], " at S1+1": [5], " at S2": [10], " at END": [16]},
    "spans": lambda prompt: {" at names": [2, 4], " at gave": [11 if prompt in LONG else 5]},
}


@pytest.mark.parametrize(
    ("positions", "kind", "route"),
    [
        *(("last", "zero", "suffix"), ("roles", "mean", "suffix"), ("spans", "mean", "suffix")),
        *(("last", "mean", "hooks"), ("roles", "zero", "hooks"), ("spans", "zero", "hooks")),
    ],
)
def test_at_some_positions_components_are_replaced_there_alone(small, positions, kind, route, monkeypatch):
    model = small("gpt2")
    prompts = LONG if positions == "roles" else PROMPTS  # the short ones name nobody twice
    asked = {"names": [2, 4], "gave": " gave"} if positions == "spans" else positions
    if route == "hooks":
        hooked(monkeypatch)
    found = ablate(model, prompts, COMPONENTS, kind, positions=asked, reference_n=len(prompts), controls=2, seed=1)
    spans = {prompt: POSITIONS[positions](prompt) for prompt in prompts}
    names = list(spans[prompts[0]])
    assert [each.name for each in found.single] == [f"{name}{at}" for name in COMPONENTS for at in names]
    means = {}
    for name in {name for each in found.effects for name in each.components}:
        index = parse_component(name)[2]
        every = [activations(model, prompt.text, name)[:, index] for prompt in prompts]
        means[name] = torch.cat(every).mean(0) if kind == "mean" else 0.0
    for effect, at in [
        *zip(found.single, names * len(COMPONENTS), strict=True),
        *((effect, None) for effect in (found.together, *found.controls)),
    ]:
        for index, prompt in list(enumerate(prompts))[::5]:
            where = spans[prompt][at] if at is not None else sorted(itertools.chain(*spans[prompt].values()))
            logits = without(model, prompt, effect.components, means.get, where)
            difference = float(logits[token(model, prompt.answer)] - logits[token(model, prompt.distractor)])
            assert effect.outcomes.logit_diff[index] == pytest.approx(difference, abs=1e-10)
    assert max(abs(each.logit_diff_change) for each in found.single) > 1e-3


def test_tokens_that_are_added_are_no_positions_of_the_prompt(small, monkeypatch):
    """Greedy tokens by hand: the whole model anew for each, with the last position of the prompt replaced."""
    model = small("gpt2")
    places, batch = by_place(("1.2", "L2.attn_out", "0.1.k")), batch_by_length(model, SHORT)[0]
    where = torch.zeros_like(batch.tokens, dtype=torch.bool)
    where[:, -1] = True

    def hook(index, activation, hook):
        activation = activation.clone()
        activation[:, batch.tokens.shape[1] - 1, index] = 0.0
        return activation

    hooks = [
        ("blocks.1.attn.hook_z", partial(hook, 2)),
        ("blocks.2.hook_attn_out", partial(hook, slice(None))),
        ("blocks.0.attn.hook_k", partial(hook, 1)),
    ]
    with borrow(model), torch.no_grad():
        tokens, expected = batch.tokens, []
        for _ in range(3):
            expected.append(model.run_with_hooks(tokens, fwd_hooks=hooks)[:, -1])
            tokens = torch.cat([tokens, expected[-1].argmax(-1, keepdim=True)], 1)
        for open_batch in (choose_passes(model, batch, [places], True), partial(HookedPasses, model)):
            zeros = lambda added, asked: dict.fromkeys(asked, torch.zeros(1, 1, 1))  # noqa: E731
            logits = list(islice(open_batch(batch).run_ablated(places, zeros, where), 3))
            torch.testing.assert_close(torch.stack(logits), torch.stack(expected), rtol=0, atol=1e-10)


@pytest.mark.parametrize("metric", ["logit", "logprob", "prob", "prob_diff", "kl", "js", "custom"])
def test_f_is_the_metric_of_each_prompts_logits_beside_those_of_the_whole_model(small, metric):
    model = small("gpt2")

    def second(logits, pair):
        return logits[:, pair.distractors[0]] * 2 + logits.logsumexp(-1)

    def f(logits, clean, prompt):
        right, wrong = (token(model, word) for word in (prompt.answer, prompt.distractor))
        p, q = clean.softmax(-1), logits.softmax(-1)
        middle = (p + q) / 2
        return {
            "logit": logits[right],
            "logprob": q[right].log(),
            "prob": q[right],
            "prob_diff": q[right] - q[wrong],
            "kl": (p * (p / q).log()).sum(),
            "js": ((p * (p / middle).log()).sum() + (q * (q / middle).log()).sum()) / 2,
            "custom": 2 * logits[wrong] + logits.logsumexp(-1),
        }[metric].item()

    found = ablate(model, PROMPTS, COMPONENTS, controls=2, metric=second if metric == "custom" else metric)
    name = "custom second" if metric == "custom" else metric
    units = {"logit": "logits", "prob": "probability", "prob_diff": "probability", "custom": "F"}
    assert (found.metric, found.unit) == (name, units.get(metric, "nats"))
    cleans = [zeroed(model, prompt, ()) for prompt in PROMPTS]
    whole = [f(clean, clean, prompt) for clean, prompt in zip(cleans, PROMPTS, strict=True)]
    assert found.value == pytest.approx(np.mean(whole), abs=1e-10)
    for effect in found.effects:
        logits = [zeroed(model, prompt, tuple(effect.components)) for prompt in PROMPTS]
        values = [f(*each) for each in zip(logits, cleans, PROMPTS, strict=True)]
        np.testing.assert_allclose(effect.outcomes.value, values, rtol=0, atol=1e-10)
        assert effect.value == pytest.approx(np.mean(values), abs=1e-10)
        assert effect.value_change == pytest.approx(np.mean(values) - np.mean(whole), abs=1e-10)
        assert effect.value_low <= effect.value_change <= effect.value_high
        assert abs(effect.value_change) > 1e-5
    frame = found.to_frame()
    assert frame.loc["1.2", ["value", "value_change"]].tolist() == [found.single[0].value, found.single[0].value_change]
    assert f"{name} {found.single[0].value_change:+.4g}" in repr(found)
    plain = ablate(model, PROMPTS, COMPONENTS, controls=2)
    assert plain.to_frame().columns.tolist() == [name for name in frame.columns if not name.startswith("value")]
    assert plain.value is plain.single[0].value is None


@pytest.fixture(scope="module")
def zero(small) -> Ablations:
    return ablate(small("gpt2"), PROMPTS, COMPONENTS, "zero", controls=3, seed=5)


def test_zero_puts_0_at_every_position(small, zero):
    for one in (*zero.single, zero.together, *zero.controls):
        agrees(small("gpt2"), one, lambda name, prompt: 0.0)


def test_mean_is_over_the_tokens_of_the_reference_prompts(small):
    model = small("gpt2")
    found = ablate(model, PROMPTS, COMPONENTS, "mean", reference_n=len(PROMPTS), controls=0, batch_size=5)
    means = {name: reference_mean(model, name, by_position=False) for name in COMPONENTS}
    for one in (*found.single, found.together):
        agrees(model, one, lambda name, prompt: means[name])


def test_mean_positional_is_the_mean_of_each_position_counted_from_the_start(small):
    model = small("gpt2")
    found = ablate(model, PROMPTS, COMPONENTS, "mean_positional", reference_n=len(PROMPTS), controls=0, batch_size=5)
    means = {name: reference_mean(model, name, by_position=True) for name in COMPONENTS}
    for one in (*found.single, found.together):
        agrees(model, one, lambda name, prompt: means[name][: model.to_tokens(prompt.text).shape[1]])


def test_resample_takes_another_prompt_of_the_same_length_the_same_for_all_components_and_never_itself(small):
    """Which donor is found by trying all: exactly one other prompt explains each number, each serves once."""
    model = small("gpt2")
    found = ablate(model, PROMPTS, COMPONENTS[:2], "resample", controls=0, seed=3, batch_size=5)
    given = {
        donor: {name: activations(model, donor.text, name)[:, parse_component(name)[2]] for name in COMPONENTS[:2]}
        for donor in PROMPTS
    }

    def explains(donor, index, one):
        prompt = PROMPTS[index]
        logits = without(model, prompt, one.components, given[donor].get)
        difference = float(logits[token(model, prompt.answer)] - logits[token(model, prompt.distractor)])
        return abs(difference - one.outcomes.logit_diff[index]) < 1e-10

    donors = []
    for index, prompt in enumerate(PROMPTS):
        group = LONG if prompt in LONG else SHORT
        fits = [donor for donor in group if all(explains(donor, index, one) for one in (*found.single, found.together))]
        assert len(fits) == 1
        assert fits[0] != prompt
        donors += fits
    assert len(set(donors)) == len(PROMPTS)


@pytest.mark.parametrize("generate", [False, True])
def test_however_many_sets_are_resampled_the_prompts_and_their_donors_run_once(small, generate):
    model, passes = small(), []
    handle = model.original_model.register_forward_hook(lambda *_: passes.append(1))
    try:
        counts = []
        for components, controls in ((["0.0"], 0), (["0.0", "2.1", "L1.N3"], 4)):
            passes.clear()
            ablate(model, LONG, components, "resample", controls=controls, generate=generate)
            counts.append(len(passes))
    finally:
        handle.remove()
    # One prompt's run, and that with the sites of layer 0 replaced, each in a row; a look at neurons' columns.
    trials = (2, 3)
    assert counts == [trial + 2 for trial in trials]


def test_random_neurons_are_neurons_of_a_model_whose_mlp_is_not_four_times_as_wide_as_its_stream(tmp_path):
    save_checkpoint("opt", 2, tmp_path, ffn_dim=96)
    model = load_model(tmp_path)
    components = [f"L{layer}.N{index}" for layer in range(2) for index in range(30)]
    ablations = ablate(model, LONG[:2], components, controls=20)
    drawn = {name for control in ablations.controls for name in control.components}
    assert drawn == {f"L{layer}.N{index}" for layer in range(2) for index in range(96)} - set(components)
    with pytest.raises(ValueError, match=r"ablation\.components: got L0\.N96, but the model has 96 neurons in a layer"):
        ablate(model, LONG[:2], ["L0.N96"])


KINDS = ("zero", "mean", "mean_positional", "resample")


def hooked(monkeypatch):
    monkeypatch.setattr("igap.analyses.ablation.ablate.choose_passes", lambda model, *_: partial(HookedPasses, model))


def ablate_some_kinds(model, components, kinds):
    return ablate_kinds(
        model, PROMPTS[:5], components, kinds, reference_n=5, seed=3, controls=1, generate=True, batch_size=2,
        memory_gib=None, on_progress=None,
    )  # fmt: skip


@pytest.mark.parametrize("positions", ["last", {"third": [2]}])
def test_at_a_span_added_tokens_are_not_ablated_by_either_route(small, monkeypatch, positions):
    model, asked = small("gpt2"), {"positions": positions, "generate": True, "controls": 0, "seed": 3}
    restarted = ablate(model, PROMPTS, ["1.2", "L1.N7"], "resample", **asked).to_frame()
    hooked(monkeypatch)
    pd.testing.assert_frame_equal(restarted, ablate(model, PROMPTS, ["1.2", "L1.N7"], "resample", **asked).to_frame())


OTHERS = ("0.1.q", "1.0.k", "2.1.v", "L1.resid_pre", "L0.attn_out", "L2.mlp_out", "L1.resid_post", "L2.resid_mid")


IN_PAIRS = ("0.1.q+L1.resid_pre", "1.0.k+L2.mlp_out", "2.1.v+L0.attn_out", "L1.resid_post+L2.resid_mid")


@pytest.mark.parametrize(
    ("architecture", "components", "kinds"),
    [
        *(("gpt2", ("0.3", "1.2", "L2.N3"), KINDS[:2]), ("gpt2", IN_PAIRS, KINDS[2:])),
        *(("llama", ("0.3", "L1.N7", "2.1"), KINDS[2:]), ("llama", IN_PAIRS, KINDS[:2])),
        *(("gemma", ("0.3", "1.2", "L2.N3"), KINDS[1:3]), ("gemma", IN_PAIRS, KINDS[::3])),
        (EMBEDDED, ("L0.N3", *IN_PAIRS), KINDS[1:3]),
    ],
)
def test_restarted_passes_give_what_the_whole_model_gives_with_hooks(
    small, architecture, components, kinds, monkeypatch
):
    """gemma: rotary, two heads a key. Components of every layer, alone and together; then each next token.

    Three prompts of one length, of which one is alone in its batch, and two of the other.
    """
    model = small(architecture)
    restarted = ablate_some_kinds(model, components, kinds)
    with torch.no_grad():
        places = by_place("+".join(components).split("+"))
        chosen = choose_passes(model, batch_by_length(model, PROMPTS)[0], [places], True)
    assert chosen.func is RestartedPasses
    hooked(monkeypatch)
    whole = ablate_some_kinds(model, components, kinds)
    for kind in kinds:
        ours, theirs = ((one.single, one.together, *one.controls) for one in (restarted[kind], whole[kind]))
        ours, theirs = ((*single, *others) for single, *others in (ours, theirs))
        for one, other in zip(ours, theirs, strict=True):
            assert one.components == other.components
            np.testing.assert_allclose(one.outcomes.logit_diff, other.outcomes.logit_diff, rtol=0, atol=1e-10)
            assert np.array_equal(one.outcomes.correct, other.outcomes.correct)
            assert np.array_equal(one.outcomes.generated, other.outcomes.generated)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox"])
def test_components_of_any_site_are_replaced_as_in_the_model_by_hand(tmp_path, architecture):
    settings = {"num_key_value_heads": 2} if architecture == "llama" else {}
    with Whole() if architecture == "llama" else contextlib.nullcontext():
        model, plain = save_beside(tmp_path, architecture, **settings)
        components = [name for name in OTHERS if architecture != "gpt_neox" or not name.endswith("resid_mid")]
        components += ["1.2", "1.2.q+L1.attn_out+2.0"]
        found = ablate_kinds(
            model, SHORT, components, ("zero", "mean_positional"), reference_n=len(SHORT), seed=0, controls=2,
            generate=False, batch_size=None, memory_gib=None, on_progress=None,
        )  # fmt: skip
        hands = [ByHand(plain, token(model, prompt.answer), token(model, prompt.distractor)) for prompt in SHORT]
        tokens = [model.to_tokens(prompt.text) for prompt in SHORT]
        every = [hand.read(of_prompt) for hand, of_prompt in zip(hands, tokens, strict=True)]
        means = {place: torch.stack([run[place] for run in every]).mean(0) for place in every[0]}
        for kind, effect in [(each.kind, effect) for each in found.values() for effect in each.effects]:
            members = [parse_component(name) for name in effect.components]

            def edit(site, layer, activation, members=members, kind=kind):
                activation = activation.clone()
                for member in members:
                    if member[:2] == (site, layer):
                        activation[:, :, member[2]] = means[site, layer][:, :, member[2]] if kind != "zero" else 0.0
                return activation

            with torch.no_grad():
                expected = [float(hand.f(of_prompt, edit)) for hand, of_prompt in zip(hands, tokens, strict=True)]
            np.testing.assert_allclose(effect.outcomes.logit_diff, expected, rtol=0, atol=1e-10)
            assert np.abs(effect.outcomes.logit_diff - found[kind].unablated.logit_diff).max() > 1e-4


def test_a_site_that_a_model_lacks_is_refused(small):
    with pytest.raises(
        InputError, match=r"has no blocks\.0\.hook_resid_mid, .* or attn_out: attention and MLP of these"
    ):
        ablate(small("gpt_neox"), SHORT, ["L1.resid_mid"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["gpt2", "gemma"])
def test_every_logit_of_a_continuation_is_that_of_the_whole_model(small, architecture, kind):
    """Not only the greedy token: all logits after each of three tokens, with components of three layers replaced."""
    model = small(architecture)
    batches = batch_by_length(model, PROMPTS)
    together, first = ("2.1", "1.2", "0.3", "L1.N7", "1.1.v", "L1.attn_out", "L2.resid_mid"), ("1.1.k", "1.3.q")
    for places, batch in itertools.product((by_place(together), by_place(first)), batches):
        with borrow(model), torch.no_grad():
            every = choose_passes(model, batches[0], [places], True), partial(HookedPasses, model)
            draw = {"rng": np.random.default_rng(3), "rows": batch_rows(model, batches)}
            replace = replacement(model, batches, kind, places, reference_n=12, **draw)
            logits = []
            for passes in (open_batch(batch) for open_batch in every):
                logits.append(torch.stack(list(islice(passes.run_ablated(places, replace(batch, passes.record)), 3))))
                logits.append(torch.stack(list(islice(passes.run_unablated(), 3))))
            for ours, theirs in zip(logits[:2], logits[2:], strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
            assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_a_model_whose_logits_are_not_in_its_weights_runs_with_hooks(small):
    """A hook that somebody left on the logits of one token: neither answer nor distractor, and yet the greedy one."""
    model = small("gpt2")
    batch = batch_by_length(model, PROMPTS)[0]
    other = next(i for i in range(9) if i not in (int(batch.answer[0]), int(batch.distractor[0])))

    def favour(logits, hook):
        return logits + 1e3 * torch.nn.functional.one_hot(torch.tensor(other), logits.shape[-1])

    handle = model.unembed.hook_out.add_hook(favour)
    try:
        with torch.no_grad():
            assert choose_passes(model, batch, [by_place(["1.2"])], False).func is HookedPasses
        found = ablate(model, PROMPTS, ["1.2"], "zero", controls=0)
        assert not found.single[0].outcomes.correct.any()
    finally:
        handle.hook.remove()
        model.unembed.hook_out.fwd_hooks.remove(handle)


def test_reference_prompts_are_as_many_as_asked_and_drawn_with_the_seed(small):
    model = small("gpt2")

    def share(seed, n):
        return ablate(model, PROMPTS, ["1.2"], "mean", reference_n=n, controls=0, seed=seed).single[0].logit_diff

    whole = share(0, len(PROMPTS))
    assert share(1, len(PROMPTS)) == pytest.approx(whole, abs=1e-12)
    assert share(0, 4) == share(0, 4)
    assert len({round(share(seed, 4), 12) for seed in range(4)}) > 1


def test_the_model_is_as_before(small, zero):
    model = small("gpt2")
    with torch.no_grad():
        before = model(model.to_tokens(PROMPTS[0].text))
        ablate(model, PROMPTS, COMPONENTS, "resample", controls=1)
        assert torch.equal(before, model(model.to_tokens(PROMPTS[0].text)))
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_changes_are_paired_and_relative_to_the_whole_model(zero):
    whole = zero.unablated
    assert zero.accuracy == whole.correct.mean()
    for one in (*zero.single, zero.together, *zero.controls):
        change = one.outcomes.correct.astype(float) - whole.correct
        assert one.change == pytest.approx(change.mean())
        assert one.change == pytest.approx(one.accuracy - zero.accuracy)
        assert one.change_low <= one.change <= one.change_high
        moved = one.outcomes.logit_diff - whole.logit_diff
        assert one.logit_diff_change == pytest.approx(moved.mean())
        # Percentile bootstrap of a mean of 24 numbers: about the normal interval with the standard error by n.
        half = 1.96 * moved.std() / np.sqrt(len(moved))
        assert one.logit_diff_high - one.logit_diff_low == pytest.approx(2 * half, rel=0.15)
        assert one.p == mcnemar(whole.correct, one.outcomes.correct)


def test_a_model_that_loses_answers_has_a_negative_change(small):
    """The answers are what the whole model says: nothing can be won."""
    model = small("gpt2")
    with torch.no_grad():
        said = [model.tokenizer.decode([int(model(model.to_tokens(one.text))[0, -1].argmax())]) for one in PROMPTS]
    known = [(one, word) for one, word in zip(PROMPTS, said, strict=True) if word not in ("<unk>", "")]
    prompts = [Prompt(one.text, word, one.distractor) for one, word in known]
    found = ablate(model, prompts, ["0.0", "0.1", "0.2", "0.3", "1.0", "1.1"], "zero", controls=0)
    assert (found.accuracy, found.accuracy_low, found.accuracy_high) == (1.0, 1.0, 1.0)
    one = found.together
    lost = int((~one.outcomes.correct).sum())
    assert lost > 5
    assert one.change == pytest.approx(-lost / len(prompts))
    assert one.change_low < one.change < one.change_high or lost == len(prompts)
    assert one.p == pytest.approx(2 * 0.5**lost)


def test_controls_are_other_components_as_many_of_each_site(zero):
    assert [one.name for one in zero.controls] == ["control 1", "control 2", "control 3"]
    for one in zero.controls:
        sites = [parse_component(name)[0] for name in one.components]
        assert (sites.count("heads"), sites.count("neurons")) == (2, 1)
        assert not set(one.components) & set(COMPONENTS)
        assert len(set(one.components)) == 3
    assert len({one.components for one in zero.controls}) > 1


def test_a_model_with_too_few_others_has_no_controls(small):
    names = [f"{layer}.{head}" for layer in range(3) for head in range(4)][:7]
    assert ablate(small("gpt2"), PROMPTS[:4], names, "zero").controls == ()


def test_one_component_has_no_all(small):
    found = ablate(small("gpt2"), PROMPTS, ["1.2"], "zero", controls=1)
    assert found.together is None
    assert [one.name for one in found.controls] == ["control 1"]
    assert len(found.single) == 1
    assert len(found.controls[0].components) == 1


def test_a_set_is_ablated_as_one_and_controls_are_as_many_as_all_its_components(small):
    model = small("gpt2")
    found = ablate(model, PROMPTS, ["1.2+L0.N5", "1.2", "0.0+1.2"], "zero", controls=2)
    assert [one.name for one in found.single] == ["1.2+L0.N5", "1.2", "0.0+1.2"]
    assert [one.components for one in found.single] == [("1.2", "L0.N5"), ("1.2",), ("0.0", "1.2")]
    assert found.together.components == ("1.2", "L0.N5", "0.0")
    for one in (*found.single, found.together):
        agrees(model, one, lambda name, prompt: 0.0)
    for one in found.controls:
        assert len(one.components) == 3
        assert not set(one.components) & set(found.together.components)
    with pytest.raises(InputError, match=r"^ablation\.components: got 0\.0\+1\.2 1\.2\+0\.0, wanted different"):
        ablate(model, PROMPTS, ["0.0+1.2", "1.2+0.0"], "zero")


def test_mcnemars_p_is_that_of_the_binomial_on_outcomes_that_changed():
    before = np.array([True] * 9 + [False] * 3 + [True] * 20)
    after = np.array([False] * 9 + [True] * 3 + [True] * 20)
    # Two-sided: twice P(at most 3 of 12 heads) = 2 (1 + 12 + 66 + 220) / 4096.
    assert mcnemar(before, after) == pytest.approx(2 * 299 / 4096)
    assert mcnemar(before, after) == pytest.approx(stats.binomtest(9, 12).pvalue)
    assert mcnemar(before, before) == 1.0


def test_components_are_grouped_by_site_and_layer():
    assert by_place(["1.2", "L0.N5", "1.0", "0.3"]) == {
        ("heads", 0): (3,),
        ("heads", 1): (0, 2),
        ("neurons", 0): (5,),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "noise"}, r"kind: got 'noise', wanted one of zero, mean, mean_positional, resample"),
        ({"components": ["3.0"]}, r"ablation\.components: got 3\.0, but the model has 3 layers"),
        ({"components": []}, r"ablation\.components: got none, wanted different components"),
        ({"components": ["1.2", "1.02"]}, r"ablation\.components: got 1\.2 1\.02, wanted different components"),
        ({"components": ["1.2", "1.2"]}, r"ablation\.components: got 1\.2 1\.2, wanted different components"),
        ({"positions": "diff"}, r"positions: got diff, wanted positions of single prompts, which belong to no"),
        ({"positions": "own"}, r"positions: got own, wanted positions of single prompts"),
        ({"positions": "each"}, r"positions: got each with pairs of 8 and 17 tokens, wanted"),
        ({"positions": {"a": [9]}}, r"positions\['a'\]: got \[9\], wanted one or more positions of the clean"),
        ({"positions": {"a": "milk"}}, r"positions\['a'\]: got 'milk', wanted words of the clean prompt"),
        ({"positions": "roles"}, r"positions: got roles, but a clean prompt has the answer 1 and the distractor 1"),
        ({"metric": "prob_diff", "prompts": [Prompt(SHORT[0].text, " John")]}, r"metric: got prob_diff, but 1 prompts \(the first is 1\) have no distractor"),  # noqa: E501
        ({"metric": lambda logits, pair: logits}, r"metric: got a function that gives \[2, \d+\] for 2 rows"),
        ({"kind": "mean", "reference_n": 99}, r"ablation\.reference_n: got 99, but there are only 24 prompts"),
        ({"kind": "mean_positional", "reference_n": 1, "seed": SEED_OF_A_SHORT_ONE, "controls": 0}, r"ablation\.reference_n: got 1 reference prompts, none of which reaches position 8 of the longest prompt \(17 tokens\)"),  # noqa: E501
        ({"kind": "resample", "prompts": [*LONG, SHORT[0]]}, r"ablation: got resample, but only one of the prompts has 8 tokens"),  # noqa: E501
    ],
)  # fmt: skip
def test_what_cannot_be_ablated_is_refused(small, unchecked, arguments, message):
    given = {"prompts": PROMPTS, "components": ["1.2"], "kind": "zero", **arguments}
    with pytest.raises(ValueError, match=message):
        ablate(small("gpt2"), given.pop("prompts"), given.pop("components"), given.pop("kind"), **given)
