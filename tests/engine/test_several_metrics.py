"""Several metrics in one pass: each map is the one that its metric gives alone, and the passes are those of one."""

import functools

import pytest
import torch
from torch.nn import functional

import igap
from igap import (
    InputError,
    PromptPair,
    activation_patching,
    atp_star,
    attribution_patching,
    compare,
    integrated_gradients,
    load_model,
    metrics,
)
from igap.engine.decoder import Decoder
from igap.metrics import METRICS
from igap.vocabulary import LEAST_ON_CLEAN, MetricName

auto = functools.partial(integrated_gradients, n_steps="auto")
singly = functools.partial(integrated_gradients, n_steps=3, path="single")
METHODS = {
    "ap": activation_patching,
    "ig": functools.partial(integrated_gradients, n_steps=5),
    "auto": auto,
    "single": singly,
    "atp": attribution_patching,
    "at": functools.partial(attribution_patching, at=0.5),
    "atp_star": atp_star,
}
WITHOUT_GRADIENT = ("atp", "atp_star")


def entropy(logits, pair):
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_model(str(checkpoint("gpt2")), dtype="float64")


def pairs_of(pair):
    """Two that share passes, and one of another length."""
    longer = PromptPair(f"Then, {pair.clean}", f"Then, {pair.corrupted}", pair.answer, pair.distractor)
    return [pair, PromptPair(pair.corrupted, pair.clean, pair.distractor, pair.answer), longer]


def same(one, other):
    for name in ("effect", "together", "delta", "layer_effect", "rounding", "n_steps", "converged"):
        ours, theirs = getattr(one, name), getattr(other, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0, equal_nan=True)
    assert (one.method, one.metric, one.unit, one.spans, one.where, one.covers, one.direction, one.baseline) == (
        other.method, other.metric, other.unit, other.spans, other.where, other.covers, other.direction, other.baseline,
    )  # fmt: skip
    assert one.gap == pytest.approx(other.gap, abs=1e-12)
    assert one.min_gap == pytest.approx(other.min_gap, abs=1e-12)
    assert one.function is other.function


@pytest.mark.parametrize("route", ["suffix", "hooks"])
@pytest.mark.parametrize("name", METHODS)
def test_each_map_is_the_one_that_its_metric_gives_alone(model, pair, name, route):
    asked = ["kl", "logit_diff", metrics.Prob(), entropy]
    options = {"direction": "denoising" if name in WITHOUT_GRADIENT else "noising"}
    spans = {"S2": [10], "end": [12]}
    choices = [{"route": route, "positions": each} for each in (("all", spans) if route == "suffix" else (spans,))]
    for choice in choices if name != "atp_star" else [{}] if route == "suffix" else []:
        few = route == "hooks" or choice.get("positions") == "all"  # a model's own passes take their time
        together = METHODS[name](model, pair, metric=asked, **options, **choice)
        assert list(together) == ["kl", "logit_diff", "prob", "custom entropy"]
        for i, (metric, made) in enumerate(zip(asked, together.values(), strict=True)):
            assert made.effect.abs().max() > 1e-9
            if i in (0, 3) or not few:
                same(made, METHODS[name](model, pair, metric=metric, **options, **choice))


@pytest.mark.parametrize("name", METHODS)
def test_each_pair_of_several_has_its_own(model, pair, name):
    pairs = pairs_of(pair)
    together = METHODS[name](model, pairs, "neurons" if name == "ap" else "heads", metric=("prob", "logit_diff"))
    for metric, mean in together.items():
        for made, own in zip(mean.pairs, pairs, strict=True):
            same(made, METHODS[name](model, own, mean.site, metric=metric))


def test_auto_gives_each_metric_and_pair_the_nodes_that_it_needs_alone():
    model = load_model(dtype="float64")
    clean, corrupted = (
        f"After John and Mary went to the store, {name} gave a bottle of milk to" for name in ("Mary", "John")
    )
    pairs = [PromptPair(clean, corrupted, " John", " Mary"), PromptPair(corrupted, clean, " Mary", " John")]
    together = auto(model, pairs, metric=["kl", "logit_diff", "prob"])
    needed = [each.n_steps.tolist() for made in together.values() for each in made.pairs]
    assert len({tuple(steps) for steps in needed}) > 2, "else nothing is told apart"
    for metric, made in together.items():
        for each, pair in zip(made.pairs, pairs, strict=True):
            alone = auto(model, pair, metric=metric)
            assert each.n_steps.tolist() == alone.n_steps.tolist()
            same(each, alone)


def test_of_each_site_and_of_other_baselines_they_are_those_alone(model, pair):
    for site, name in (("q", "ap"), ("v", "ig"), ("resid_mid", "ap"), ("mlp_out", "ig"), ("neurons", "ap")):
        together = METHODS[name](model, pair, site, baseline="zero", metric=["js", "logprob"])
        for metric, made in together.items():
            same(made, METHODS[name](model, pair, site, baseline="zero", metric=metric))


def test_kl_and_the_logit_difference_of_one_pass_equal_torch_on_hooked_models(model, pair):
    """Not written by us: a plain hook on the whole model, and torch's own divergence."""
    ids = {name: model.to_tokens(getattr(pair, name)) for name in ("clean", "corrupted")}
    answer, distractor = (
        int(model.to_tokens(word, prepend_bos=False)[0, -1]) for word in (pair.answer, pair.distractor)
    )
    together = activation_patching(model, pair, metric=["logit_diff", "kl"])
    with torch.no_grad():
        clean = model(ids["clean"])[0, -1]
        _, cache = model.run_with_cache(ids["corrupted"])
        for layer, head in ((0, 1), (1, 3)):

            def swap(z, hook, layer=layer, head=head):
                z = z.clone()
                z[:, :, head] = cache[f"blocks.{layer}.attn.hook_z"][:, :, head]
                return z

            hooks = [(f"blocks.{layer}.attn.hook_z", swap)]
            logits = model.run_with_hooks(ids["clean"], fwd_hooks=hooks)[0, -1]
            change = (logits - clean)[[answer, distractor]]
            kl = functional.kl_div(logits.log_softmax(-1), clean.log_softmax(-1), reduction="sum", log_target=True)
            assert float(together["logit_diff"].effect[layer, head]) == pytest.approx(
                float(change[0] - change[1]), abs=1e-10
            )
            assert float(together["kl"].effect[layer, head]) == pytest.approx(float(kl), abs=1e-10)


@pytest.fixture
def counted(monkeypatch):
    """How many rows have been unembedded, in how many passes."""
    rows = []
    logits = Decoder.logits
    monkeypatch.setattr(Decoder, "logits", lambda self, last: rows.append(last.shape[1]) or logits(self, last))
    return rows


@pytest.mark.parametrize("name", ["ap", "ig", "atp"])
def test_several_metrics_make_the_passes_of_one(model, pair, name, counted):
    passes = []
    for metric in ("kl", ["kl", "logit_diff", "prob", "js"]):
        METHODS[name](model, pair, metric=metric, direction="denoising")
        passes.append(list(counted))
        counted.clear()
    assert passes[0]
    assert passes[0] == passes[1]


def test_what_is_no_list_of_metrics_is_refused_in_one_line(model, pair):
    lambdas = [lambda logits, pair: logits[:, 0], lambda logits, pair: logits[:, 1]]
    for metric, said in (
        ([], "got none, wanted one or more"),
        (["kl", metrics.KL()], "got 2 called 'kl', wanted metrics of different names"),
        (lambdas, "got 2 called 'custom <lambda>'"),
        (metrics.KL, "got the class KL, wanted an object of it. Write KL()"),
        (["kl", "entropy"], "got 'entropy', wanted one of logit_diff"),
        (["kl", 3], "got 3, wanted"),
    ):
        with pytest.raises(InputError, match=r"^metric[^\n]*$") as error:
            activation_patching(model, pair, metric=metric)
        assert said in str(error.value)
    for method, named in ((attribution_patching, "attribution patching"), (atp_star, r"AtP\*")):
        with pytest.raises(InputError, match=rf"^metric: got js with {named} into the clean run[^\n]*$"):
            method(model, pair, metric=["prob", "js"])


def test_atp_star_of_a_metric_is_by_its_own_gradients(model, pair):
    def thrice(logits, pair):
        return 3 * (logits[:, pair.distractor] - logits[:, pair.answer])

    made = atp_star(model, pair, metric=[thrice, "logit_diff"])
    torch.testing.assert_close(made["custom thrice"].effect, 3 * made["logit_diff"].effect, atol=1e-12, rtol=0)
    assert (made["custom thrice"].unit, made["custom thrice"].signed) == ("F", False)


def test_functions_of_one_name_are_not_compared(model, pair):
    first, second = (lambda logits, pair, by=by: by * logits[:, pair.answer] for by in (1.0, -1.0))
    ap = activation_patching(model, pair, metric=first)
    assert compare(integrated_gradients(model, pair, metric=first, n_steps=5), ap).pearson > 0
    with pytest.raises(InputError, match=r"^ap is a map of custom <lambda>, ig of another function of that name;"):
        compare(integrated_gradients(model, pair, metric=second, n_steps=5), ap)
    mean = activation_patching(model, [pair, pair], metric=second)
    with pytest.raises(InputError, match="another function of that name"):
        compare(mean, ap)


@pytest.mark.parametrize("name", METRICS)
def test_an_object_is_the_metric_of_its_name(model, pair, name):
    metric = METRICS[name]
    assert getattr(metrics, type(metric).__name__)() == metric
    assert (metric.name, repr(metric)) == (name, f"{type(metric).__name__}()")
    ours, named = (activation_patching(model, pair, metric=each) for each in (metric, name))
    assert torch.equal(ours.effect, named.effect)
    assert (ours.metric, ours.unit) == (name, metric.unit)


def test_every_name_has_one_public_object():
    assert [type(metric).__name__ for metric in METRICS.values()] == [
        "LogitDiff", "Logit", "LogProb", "Prob", "ProbDiff", "KL", "JS",
    ]  # fmt: skip
    assert set(METRICS) == set(MetricName.__args__) == {metric.name for metric in METRICS.values()}
    assert set(metrics.__all__) == {type(metric).__name__ for metric in METRICS.values()}
    assert {name for name, metric in METRICS.items() if metric.at_minimum} == set(LEAST_ON_CLEAN)
    assert igap.metrics is metrics
    assert metrics.KL() != metrics.JS()


def test_an_object_called_on_logits_is_torch_and_scipy():
    logits, clean = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clean = clean[0]
    logprobs = logits.log_softmax(-1)
    close = functools.partial(torch.testing.assert_close, atol=1e-12, rtol=0)
    close(metrics.LogitDiff()(logits, 3, [1, 2]), logits[:, 3] - logits[:, 1:3].mean(-1))
    close(metrics.Logit()(logits[0], 3), logits[0, 3])
    close(metrics.LogProb()(logits, [3, 4]), logprobs[:, 3:5].exp().sum(-1).log())
    close(metrics.Prob()(logits, 3), logprobs[:, 3].exp())
    close(metrics.ProbDiff()(logits, 3, 0), logprobs[:, 3].exp() - logprobs[:, 0].exp())
    kl = functional.kl_div(logprobs, clean.log_softmax(-1).expand(5, -1), reduction="none", log_target=True).sum(-1)
    close(metrics.KL()(logits, clean), kl)
    assert (metrics.JS()(logits, clean) > 0).all()
    for token in (9, -1, []):
        with pytest.raises(InputError, match=r"^answer: got [^\n]* wanted the id of a token of these logits"):
            metrics.Prob()(logits, token)


def test_an_object_is_of_use_in_a_function_of_ones_own(model, pair):
    def both(logits, pair):
        return metrics.Prob()(logits, pair.answers) + metrics.ProbDiff()(logits, pair.answers, pair.distractors)

    parts = activation_patching(model, pair, metric=["prob", "prob_diff", both])
    whole = parts["prob"].effect + parts["prob_diff"].effect
    torch.testing.assert_close(parts["custom both"].effect, whole, atol=1e-12, rtol=0)
