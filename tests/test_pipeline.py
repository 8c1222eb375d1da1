"""The order of the steps, nothing else: the numbers of a run are those of the methods called by hand."""

import pytest
import torch

from igap import activation_patching, attribution_patching, integrated_gradients, load_model, pipeline
from igap.cli import compose_jobs
from igap.comparison import compare
from igap.pipeline import check, prompt_pair, resolve_device
from igap.sites import SITES


@pytest.fixture(autouse=True)
def _no_model_kept():
    yield
    pipeline._cached_model.cache_clear()


@pytest.fixture
def config(checkpoint):
    def make(*overrides):
        name = f"model.name={checkpoint('gpt2')}"
        (found,) = compose_jobs(["model=hf", name, "prompts.min_gap=0", "device=cpu", *overrides], multirun=False)
        return found

    return make


def test_every_setting_reaches_the_methods(config):
    asked = config(
        "baseline=zero", "ig.n_steps=3", "ig.method=riemann_left", "ig.path=single", "model.processing=raw",
        "model.dtype=float64", "batch_size=5",
    )  # fmt: skip
    found = pipeline.run(asked)
    model, pair = load_model(asked.model.name, processing="raw", dtype="float64"), prompt_pair(asked)
    for site in SITES:
        by_hand = {
            "ig": integrated_gradients(
                model, pair, site, baseline="zero", n_steps=3, method="riemann_left", path="single"
            ),
            "ap": activation_patching(model, pair, site),
            "atp": attribution_patching(model, pair, site),
        }
        for method, expected in by_hand.items():
            torch.testing.assert_close(found.maps[site][method].effect, expected.effect, atol=1e-12, rtol=0)
        assert found.comparisons[site].pearson == pytest.approx(compare(by_hand["ig"], by_hand["ap"]).pearson)
    assert found.gap == pytest.approx(by_hand["ap"].gap, abs=1e-12)


def test_denoising_reaches_the_methods(config):
    asked = config("direction=denoising", "model.dtype=float64")
    found = pipeline.run(asked)
    model, pair = load_model(asked.model.name, dtype="float64"), prompt_pair(asked)
    for name, method in (("ig", integrated_gradients), ("ap", activation_patching), ("atp", attribution_patching)):
        expected = method(model, pair, "heads", direction="denoising").effect
        torch.testing.assert_close(found.maps["heads"][name].effect, expected, atol=1e-12, rtol=0)


def test_the_same_config_gives_the_same_bytes(config):
    first, second = (pipeline.run(config("ig.n_steps=5")) for _ in range(2))
    for site in SITES:
        for method in ("ig", "ap", "atp"):
            assert torch.equal(first.maps[site][method].effect, second.maps[site][method].effect)


def test_a_coarse_quadrature_is_warned_about_with_the_remedy(config):
    found = pipeline.run(config("ig.n_steps=2", "ig.method=riemann_left"))
    warning = next(text for text in found.warnings if text.startswith("ig: the completeness delta of heads"))
    assert "is above 1% of the layer's effect in layer" in warning
    assert warning.endswith("Use more steps: ig.n_steps=8, or ig.n_steps=auto.")
    assert not pipeline.run(config("ig.n_steps=100")).warnings


def test_bfloat16_is_warned_about_and_more_steps_are_no_remedy(config):
    (warning,) = pipeline.run(config("model.dtype=bfloat16", "ig.n_steps=2")).warnings
    assert warning.startswith("model.dtype: bfloat16 keeps 8 bits of a logit")
    assert warning.endswith("Use model.dtype=float32 for numbers that count.")


def test_check_needs_no_weights(config, monkeypatch):
    monkeypatch.setattr(pipeline, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    assert check(config()).answer != check(config()).distractor


def test_progress_is_told_for_every_site_and_method(config):
    opened, told = [], []

    class Stage:
        def __init__(self, name):
            opened.append(name)

        def __enter__(self):
            return lambda done, total: told.append((opened[-1], done, total))

        def __exit__(self, *_):
            return None

    pipeline.run(config("ig.n_steps=2"), Stage)
    assert opened == ["load model", *(f"{method} {site}" for method in ("ig", "ap", "atp") for site in SITES)]
    for name in opened[1:]:
        steps = [(done, total) for stage, done, total in told if stage == name]
        assert steps[-1][0] == steps[-1][1] > 0, name
        assert steps == sorted(steps)


def test_auto_is_a_device_this_machine_has(unchecked):
    assert resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == "cpu"
    with pytest.raises(ValueError, match=r"device: got cuda:99, which this machine does not have\. Use device=cpu or"):
        resolve_device("cuda:99")
