"""The order of the steps, nothing else: the numbers of a run are those of the methods called by hand."""

import csv
import io
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from igap import activation_patching, atp_star, attribution_patching, integrated_gradients, load_model, pipeline
from igap.analyses.base import Analysis
from igap.cli.compose import compose_one
from igap.components import SITES
from igap.engine.open_pairs import contrast
from igap.errors import InputError
from igap.models import cached
from igap.models.cached import resolve_device
from igap.output.terminal import show
from igap.pipeline import check, steps
from igap.statistics.comparison import compare, compare_values

pytestmark = pytest.mark.usefixtures("one_model")

METHODS = ("ig", "ap", "atp", "atp_star")


@pytest.fixture
def config(checkpoint):
    def make(*overrides, analyses=False):
        name = f"model.name={checkpoint('gpt2')}"
        left_out = [] if analyses else ["explain=false", "curves.components=none"]
        return compose_one(["model=hf", name, "prompts.min_gap=0", "device=cpu", *left_out, *overrides]).config

    return make


def test_every_setting_reaches_the_methods(config):
    asked = config(
        "baseline=zero", "ig.n_steps=3", "ig.method=riemann_left", "ig.path=single", "model.processing=raw",
        "model.dtype=float64", "batch_size=5",
    )  # fmt: skip
    found = pipeline.run(asked)
    model, pair = load_model(asked.model.name, processing="raw", dtype="float64"), check(asked).pairs[0]
    for site in SITES:
        by_hand = {
            "ig": integrated_gradients(
                model, pair, site, baseline="zero", n_steps=3, method="riemann_left", path="single"
            ),
            "ap": activation_patching(model, pair, site),
            "atp": attribution_patching(model, pair, site),
            "atp_star": atp_star(model, pair, site),
        }
        for method, expected in by_hand.items():
            torch.testing.assert_close(found.maps[site][method].effect, expected.effect, atol=1e-12, rtol=0)
        assert found.comparisons[site].pearson == pytest.approx(compare(by_hand["ig"], by_hand["ap"]).pearson)
    assert found.gap == pytest.approx(by_hand["ap"].gap, abs=1e-12)


def test_denoising_reaches_the_methods(config):
    asked = config("direction=denoising", "model.dtype=float64")
    found = pipeline.run(asked)
    model, pair = load_model(asked.model.name, dtype="float64"), check(asked).pairs[0]
    methods = {
        "ig": integrated_gradients, "ap": activation_patching, "atp": attribution_patching, "atp_star": atp_star
    }  # fmt: skip
    for name, method in methods.items():
        expected = method(model, pair, "heads", direction="denoising").effect
        torch.testing.assert_close(found.maps["heads"][name].effect, expected, atol=1e-12, rtol=0)


def test_the_same_config_gives_the_same_bytes(config):
    first, second = (pipeline.run(config("ig.n_steps=5")) for _ in range(2))
    for site in SITES:
        for method in METHODS:
            assert torch.equal(first.maps[site][method].effect, second.maps[site][method].effect)


def test_a_coarse_quadrature_is_warned_about_with_the_remedy(config):
    found = pipeline.run(config("ig.n_steps=2", "ig.method=riemann_left"))
    warning = next(text for text in found.warnings if text.startswith("ig: the completeness delta of heads"))
    assert "is above 1% of the layer's effect in layer" in warning
    assert warning.endswith("Use ig.n_steps=auto, or more steps: ig.n_steps=8.")
    assert not pipeline.run(config("ig.n_steps=100")).warnings


def test_bfloat16_is_warned_about_and_more_steps_are_no_remedy(config):
    stages = []

    def stage(name):
        stages.append(name)
        return nullcontext()

    result = pipeline.run(config("model.dtype=bfloat16", "ig.n_steps=2"), stage)
    (warning,) = result.warnings
    assert warning.startswith("model.dtype: bfloat16 keeps 8 bits of a logit")
    assert warning.endswith("Use model.dtype=float32 for numbers that count.")
    slow = [name.removesuffix(" (route hooks)") for name in stages if name.endswith(" (route hooks)")]
    assert slow == [f"{method} {site}" for method in METHODS for site in SITES]
    assert "load model" in stages
    text = io.StringIO()
    show(Console(file=text, width=160), result)
    assert (
        "route: hooks, the slower one: bfloat16 rounds too much to compare it with the whole model\n" in text.getvalue()
    )


def test_a_checkpoint_saved_again_is_another_model_also_in_one_process(config, checkpoint, tmp_path):
    """Numbers of the old weights must not come out, or be kept for other jobs, under the new ones' name."""
    folder = shutil.copytree(checkpoint("gpt2"), tmp_path / "mine")
    asked = config(f"model.name={folder}")
    before = pipeline.run(asked, store=tmp_path / "store")
    weights = load_file(folder / "model.safetensors")
    weights["transformer.h.1.mlp.c_fc.weight"] *= 1.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    after = pipeline.run(asked, store=tmp_path / "store")
    assert after.checkpoint != before.checkpoint
    cached._cached_model.cache_clear()
    alone = pipeline.run(asked)
    assert after.clean_logit_diffs == alone.clean_logit_diffs != before.clean_logit_diffs
    assert torch.equal(after.maps["heads"]["ap"].effect, alone.maps["heads"]["ap"].effect)


def test_a_checkpoint_that_changes_while_it_is_read_is_refused(config, checkpoint, tmp_path, monkeypatch):
    folder = shutil.copytree(checkpoint("gpt2"), tmp_path / "mine")
    asked = config(f"model.name={folder}")
    load = cached.load_model

    def changing(*arguments, **options):
        (folder / "generation_config.json").write_text("{}")
        return load(*arguments, **options)

    monkeypatch.setattr(cached, "load_model", changing)
    with pytest.raises(
        InputError, match=r"model\.name: got .*mine, whose files have changed since the run was planned"
    ):
        pipeline.run(asked)


def test_check_needs_no_weights(config, monkeypatch):
    monkeypatch.setattr(cached, "_cached_model", lambda *_: pytest.fail("the model was loaded"))
    (tokens,) = check(config()).tokens
    assert tokens.answer != tokens.distractor


def test_progress_is_told_for_every_site_and_method(config):
    opened, told = [], []

    class Stage:
        def __init__(self, name):
            opened.append(name)

        def __enter__(self):
            return lambda done, total: told.append((opened[-1], done, total))

        def __exit__(self, *_):
            return None

    pipeline.run(config("ig.n_steps=2", analyses=True), Stage)
    methods = [f"{method} {site}" for method in METHODS for site in SITES]
    assert opened == ["load model", *methods, "screening", "qk", "explain", "curves"]
    for name in methods:
        steps = [(done, total) for stage, done, total in told if stage == name]
        assert steps[-1][0] == steps[-1][1] > 0, name
        assert steps == sorted(steps)


def test_auto_is_a_device_this_machine_has(unchecked):
    assert resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == "cpu"
    with pytest.raises(ValueError, match=r"device: got cuda:99, which this machine does not have\. Use device=cpu or"):
        resolve_device("cuda:99")


def test_every_pair_reaches_the_methods_in_the_files_order(config, pair_file):
    asked = config(f"prompts.file={pair_file}", "model.dtype=float64", "ig.n_steps=3", "baseline=zero")
    found = pipeline.run(asked)
    model, pairs = load_model(asked.model.name, dtype="float64"), check(asked).pairs
    assert found.pairs == pairs
    with pair_file.open(newline="") as file:
        assert [list(pair.texts) for pair in pairs] == list(csv.reader(file))[1:]
    for site in SITES:
        ig = [integrated_gradients(model, pair, site, baseline="zero", n_steps=3) for pair in pairs]
        ap = [activation_patching(model, pair, site) for pair in pairs]
        for name, alone in (("ig", ig), ("ap", ap)):
            for one, expected in zip(found.maps[site][name].pairs, alone, strict=True):
                torch.testing.assert_close(one.effect, expected.effect, atol=1e-12, rtol=0)
            mean = torch.stack([one.score for one in alone]).mean(0)
            torch.testing.assert_close(found.maps[site][name].score, mean, atol=1e-12, rtol=1e-9)
        assert found.gaps == pytest.approx([one.gap for one in ap], abs=1e-12)
        for r, one, other in zip(found.spread.pearson[site], ig, ap, strict=True):
            assert r == pytest.approx(compare(one, other).pearson, abs=1e-12)
    for index, pair in enumerate(pairs):
        with contrast(model, pair) as question:
            assert found.clean_logit_diffs[index] == pytest.approx(question.clean.logit_diff.item(), abs=1e-12)
            assert found.corrupted_logit_diffs[index] == pytest.approx(question.corrupted.logit_diff.item(), abs=1e-12)
            assert torch.equal(found.tokens[index].clean, question.pairs[0].clean)


def test_the_comparison_of_several_pairs_is_that_of_the_mean_scores(many):
    scored = [index for index, gap in enumerate(many.gaps) if abs(gap) >= 0.2]
    assert scored == [0, 1, 3, 4]
    for site in SITES:
        ig, ap = (
            np.mean([many.maps[site][name].pairs[index].score.double().numpy() for index in scored], axis=0)
            for name in ("ig", "ap")
        )
        found, expected = many.comparisons[site], compare_values(ig, ap)
        assert found.unit == "score"
        np.testing.assert_allclose(found.difference, expected.difference, atol=1e-6)
        for name in ("pearson", "spearman", "bias", "limits_low"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-5), name


def test_numbers_of_several_pairs_are_means_and_one_pair_has_no_spread(many, result):
    assert many.gap == pytest.approx(sum(many.gaps) / 5)
    assert many.clean_logit_diff == pytest.approx(sum(many.clean_logit_diffs) / 5)
    assert many.corrupted_logit_diff == pytest.approx(sum(many.corrupted_logit_diffs) / 5)
    assert many.gap == pytest.approx(many.clean_logit_diff - many.corrupted_logit_diff)
    assert result.spread is None
    assert (result.n_unscored, many.n_unscored) == (0, 1)


def test_pairs_without_a_score_are_warned_about(many, config, pair_file):
    assert many.warnings == (
        "prompts: the gap F(clean) - F(corrupted) of 1 of 5 pairs is too small, wanted at least prompts.min_gap=0.2 "
        "and 10% of |F(clean)|; "
        "they have no scores (effect / gap), which would explode, and mean scores and their intervals leave them out; "
        "mean effects in logits do not. pairs.csv lists every gap.",
    )
    found = pipeline.run(config(f"prompts.file={pair_file}", "prompts.min_gap=1000", "ig.n_steps=20"))
    (warning,) = found.warnings
    assert "of 5 of 5 pairs is too small" in warning
    assert warning.endswith("effects in logits are kept. Choose prompts that the model tells apart.")
    assert not found.has_scores
    assert found.comparisons["heads"].unit == "logits"
    assert np.isnan(found.spread.intervals["heads"]["ap"].low).all()


def test_a_coarse_quadrature_is_warned_about_with_its_worst_pair(config, pair_file):
    found = pipeline.run(config(f"prompts.file={pair_file}", "ig.n_steps=2", "ig.method=riemann_left"))
    for site in SITES:
        ig = found.maps[site]["ig"]
        bad = [(abs(float(one.delta[i])), i, p) for p, one in enumerate(ig.pairs) for i in one.incomplete_layers(0.01)]
        _, layer, pair = max(bad)
        warning = next(text for text in found.warnings if text.startswith(f"ig: the completeness delta of {site}"))
        layers = ", ".join(map(str, sorted({i for _, i, _ in bad})))
        assert f"layers {layers} (in {len({p for _, _, p in bad})} of 5 pairs; worst: " in warning
        one = ig.pairs[pair]
        worst = (
            f"worst: {one.delta[layer]:+.3g} of {one.layer_effect[layer]:+.3g} logits in layer {layer} of pair {pair})"
        )
        assert worst in warning


def test_a_file_of_one_pair_is_that_pair(config, pair_file, tmp_path):
    one = tmp_path / "one.csv"
    one.write_text("".join(pair_file.read_text().splitlines(keepends=True)[:2]))
    found = pipeline.run(config(f"prompts.file={one}", "ig.n_steps=2"))
    clean, corrupted, answer, distractor = found.pairs[0].texts
    texts = [f"prompts.clean='{clean}'", f"prompts.corrupted='{corrupted}'"]
    alone = pipeline.run(
        config(*texts, f"prompts.answer='{answer}'", f"prompts.distractor='{distractor}'", "ig.n_steps=2")
    )
    assert found.spread is None
    assert torch.equal(found.maps["heads"]["ap"].effect, alone.maps["heads"]["ap"].effect)
    assert found.key == alone.key


def test_the_key_is_that_of_the_prompts_really_used(config, pair_file, tmp_path):
    def key(*overrides):
        return check(config(*overrides)).key

    edited, copied = tmp_path / "edited.csv", tmp_path / "copied.csv"
    copied.write_bytes(pair_file.read_bytes())
    edited.write_text(pair_file.read_text().replace("milk", "cat", 2))
    mini = ["model.name=ioi-mini"]
    keys = [
        key(),
        key(f"prompts.file={pair_file}"),
        key(f"prompts.file={edited}"),
        key(*mini),
        key(*mini, "prompts.n=5"),
        key(*mini, "prompts.n=6"),
        key(*mini, "prompts.n=5", "prompts.seed=1"),
    ]
    assert len(set(keys)) == len(keys)
    assert key(f"prompts.file={copied}") == key(f"prompts.file={pair_file}"), "the same pairs under another name"
    assert key(*mini, "prompts=generated", "prompts.n=5") == key(*mini, "prompts.n=5")
    assert key(*mini, "prompts.n=5", "seed=1") == key(*mini, "prompts.n=5", "prompts.seed=1")


def test_a_baselines_prompt_of_another_length_than_some_pair_is_refused(config, pair_file):
    other = "baseline.prompt='After Tom and Anna went to the store, Anna gave a bottle of milk to'"
    with pytest.raises(
        ValueError,
        match=r"baseline\.prompt: got 16 tokens, the prompts of .*five\.csv, row 3 \(line 4\) have 12 \(without the "
        r"token before every prompt\);",
    ):
        check(config(f"prompts.file={pair_file}", "baseline=prompt", other))


def test_progress_counts_the_components_of_all_pairs(config, pair_file):
    told = {}

    class Stage:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            return lambda done, total: told.__setitem__(self.name, (done, total))

        def __exit__(self, *_):
            return None

    pipeline.run(config(f"prompts.file={pair_file}", "ig.n_steps=2"), Stage)
    for method in METHODS:
        assert told[f"{method} heads"] == (5 * 3 * 4, 5 * 3 * 4)
        assert told[f"{method} neurons"] == (5 * 3 * 48, 5 * 3 * 48)


class Silent:
    """A finding that says nothing."""

    def summary(self):
        return {}

    def tables(self):
        return {}

    def sentences(self):
        return ()


class Broken(Silent):
    """A finding whose table cannot be made."""

    def tables(self):
        raise IndexError("no row")


FAILING = {
    "runs out": (torch.OutOfMemoryError("CUDA out of memory"), "OutOfMemoryError: CUDA out of memory"),
    "runs out on a CPU": (MemoryError(), "MemoryError"),
    "refuses": (InputError("curves.alphas: got 5, wanted 6."), "curves.alphas: got 5, wanted 6."),
    "breaks": (RuntimeError("two\nlines"), "RuntimeError: two lines"),
    "loses its disk": (OSError(28, "No space left", "x.csv"), "x.csv cannot be written or read (No space left)"),
}


class Given(Analysis):
    """An analysis that gives this finding, or raises this error."""

    def __init__(self, outcome):
        self.outcome = outcome

    def is_requested(self, config):
        return True

    def run(self, context, on_progress):
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


@pytest.fixture
def analyses(monkeypatch):
    """Puts these in place of all analyses, by name."""

    def put(**instead):
        # A table of its own: entries that are taken out and put back come last.
        monkeypatch.setattr(steps, "ANALYSES", {name: Given(outcome) for name, outcome in instead.items()})

    return put


def test_an_analysis_that_fails_costs_its_own_result_only(config, analyses):
    errors = {name: error for name, (error, _) in FAILING.items()}
    analyses(first=Silent(), **errors, **{"tells badly": Broken()}, last=Silent())
    found = pipeline.run(config("ig.n_steps=2", "sites=heads"))
    assert list(found.findings) == ["first", "last"]
    reasons = {name: failure.reason for name, failure in found.failures.items()}
    assert reasons == {name: reason for name, (_, reason) in FAILING.items()} | {"tells badly": "IndexError: no row"}
    assert all("Traceback" in failure.story for failure in found.failures.values())
    assert found.comparisons["heads"].pearson == compare(*(found.maps["heads"][name] for name in ("ig", "ap"))).pearson
    analyses(stopped=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(config("ig.n_steps=2", "sites=heads"))


def test_a_mean_over_prompts_that_the_generator_does_not_have_is_refused_before_the_model_loads(config, monkeypatch):
    monkeypatch.setattr(cached, "_cached_model", lambda *_: pytest.fail("the model was loaded"))
    texts = ["prompts.clean=John went to", "prompts.corrupted=Mary went to"]
    texts += ["prompts.answer=' John'", "prompts.distractor=' Mary'"]
    with pytest.raises(InputError, match=r"baseline\.n: got 2, found 0 generated prompts of 3 tokens \(without"):
        check(config("baseline=mean", "baseline.n=2", "model.name=ioi-mini", *texts))


def test_more_top_heads_than_the_model_has_are_refused_before_it_loads(config, monkeypatch):
    monkeypatch.setattr(cached, "_cached_model", lambda *_: pytest.fail("the model was loaded"))
    asked = ["ablation=zero", "ablation.components=top", "ablation.n=20", "model.name=ioi-mini"]
    check(config(*asked, "ablation.top=32"))
    with pytest.raises(InputError, match=r"ablation\.top: got 33, but the model has 32 heads\."):
        check(config(*asked, "ablation.top=33"))


def test_so_few_prompts_that_none_is_left_are_refused_before_the_model_loads(config, monkeypatch):
    monkeypatch.setattr(cached, "_cached_model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(InputError, match=r"ablation\.n: got 2, wanted more: no two of so few generated prompts"):
        check(config("ablation=zero", "ablation.n=2", "model.name=ioi-mini"))


def test_a_prompt_of_an_ablation_that_leaves_no_room_for_the_bos_token_is_refused_before_the_model_loads(
    config, monkeypatch, tmp_path
):
    monkeypatch.setattr(cached, "_cached_model", lambda *_: pytest.fail("the model was loaded"))
    file, n_ctx = tmp_path / "prompts.csv", cached.header_of("ioi-mini", None).n_ctx
    asked = ["ablation=zero", f"ablation.file={file}", "model.name=ioi-mini"]
    for n_words, message in ((n_ctx - 1, None), (n_ctx, rf"got {n_ctx} tokens and the token before every prompt")):
        file.write_text("prompt,answer,distractor\n" + f"{' '.join(['John'] * n_words)}, John, Mary\n" * 4)
        with nullcontext() if message is None else pytest.raises(InputError, match=message):
            check(config(*asked))


def test_the_key_of_the_default_run_stays_what_it_was():
    """With the pair's tokens, which go into it without the model's own BOS token."""
    assert check(compose_one(["device=cpu"]).config).key == "19aa443f4cf2"
