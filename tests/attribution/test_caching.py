"""A map from the store is the map that was computed: every number, and what the numbers are."""

import functools
import hashlib
import json
from contextlib import contextmanager

import pytest
import torch

from igap import PromptPair, activation_patching
from igap.attribution import atp_star
from igap.attribution.caching import cached_maps
from igap.cli.compose import compose_one
from igap.cli.texts import quote_override
from igap.engine.forward import Suffix
from igap.inputs.prompts import tokenize
from igap.storage import cache
from igap.storage.cache import ResultCache, use_cache

OTHER = {"further": {"spans": '{"b": [3], "a": [10]}'}, "min_gap": 0.0}
FIELDS = ("gap", "min_gap", "method", "site", "signed", "metric", "unit", "spans", "where", "covers")


@functools.cache
def config_of(*overrides):
    return compose_one([quote_override(each, single=True) for each in overrides]).config


def equal(kept, computed):
    for one, same in zip((kept, *kept.pairs), (computed, *computed.pairs), strict=True):
        for name in ("effect", "score", "together"):
            ours, theirs = getattr(one, name), getattr(same, name)
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert torch.equal(ours.isnan(), theirs.isnan())
                assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())
                assert ours.dtype == theirs.dtype
        assert [getattr(one, name) for name in FIELDS] == [getattr(same, name) for name in FIELDS]


@pytest.mark.parametrize("n_pairs", [1, 2])
@pytest.mark.parametrize(
    ("name", "method", "overrides", "options"),
    [
        ("ap", activation_patching, [], {}),
        ("atp_star", atp_star, [], {}),
        ("ap", activation_patching, ["metric=kl"], {"metric": "kl"}),
        ("ap", activation_patching, ["positions=each"], {"positions": "each"}),
        ("ap", activation_patching, ["positions=last", "metric=prob"], {"positions": "last", "metric": "prob"}),
        (
            "ap",
            activation_patching,
            ["positions.spans={b: 10, a: 3-4}"],
            {"positions": {"b": [10], "a": [3, 4]}},
        ),
    ],
)
def test_a_kept_map_is_the_computed_one_bit_for_bit(small, pair, tmp_path, n_pairs, name, method, overrides, options):
    model = small("gpt2")
    other = PromptPair(pair.corrupted, pair.clean, " Mary", " John", min_gap=0.5)
    pairs = [pair, other][:n_pairs]
    tokens = [tokenize(model, one) for one in pairs]
    asked = pairs if n_pairs > 1 else pair
    computed = method(model, asked, "neurons", **options)
    least = [one.min_gap for one in computed.pairs or [computed]]
    calls = []

    def compute():
        calls.append(1)
        return {f"part.{name}": method(model, asked, "neurons", **options)}

    for _ in range(2):
        with use_cache(ResultCache(tmp_path, {})):
            (kept,) = cached_maps("kind", "neurons", config_of(*overrides), tokens, least, compute).values()
        assert calls == [1]
        assert kept.effect.dtype == torch.float64
        equal(kept, computed)


CHANGES = {
    "site": ("neurons", [], {}),
    "direction": ("heads", ["direction=denoising"], {}),
    "pair": ("heads", [], {"min_gap": 0.0}),
    "metric": ("heads", ["metric=kl"], {}),
    "another metric": ("heads", ["metric=js"], {}),
    "function": ("heads", ["metric=custom", "metric.function=kept_metrics:first"], {}),
    "another function": ("heads", ["metric=custom", "metric.function=kept_metrics:second"], {}),
    "positions": ("heads", ["positions=each"], {}),
    "other positions": ("heads", ["positions=last"], {}),
    "spans": ("heads", ["positions.spans={a: 3, b: 10}"], {}),
    "other spans": ("heads", ["positions.spans={a: 3, b: 11}"], {}),
    "spans of other names": ("heads", ["positions.spans={a: 3, c: 10}"], {}),
    "spans in another order": ("heads", ["positions.spans={b: 10, a: 3}"], {}),
    "spans of its own": ("heads", ["positions=own"], OTHER),
    "other spans of its own": ("heads", ["positions=own"], {**OTHER, "further": {"spans": '{"b": [4], "a": [10]}'}}),
}
FUNCTIONS = (
    "def first(logits, pair):\n    return logits[:, 0]\n\n\ndef second(logits, pair):\n    return logits[:, 1]\n"
)


def test_another_question_is_another_map(small, pair, tmp_path, monkeypatch):
    """None of these takes another's map, whichever came first; each takes its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept_metrics.py").write_text(FUNCTIONS)
    model, made = small("gpt2"), {}
    maps = {site: activation_patching(model, pair, site) for site in ("heads", "neurons")}
    for name, (site, overrides, options) in {"default": ("heads", [], {}), **CHANGES}.items():
        asked = pair if name != "pair" else PromptPair(pair.clean, pair.corrupted, pair.distractor, pair.answer)
        asked = PromptPair(*asked.texts, **options)
        tokens = [tokenize(model, asked)]
        for _ in range(2):
            compute = functools.partial(dict, ap=maps[site])  # whatever map it is, it is the one that was asked for
            with use_cache(ResultCache(tmp_path / "store", {})):
                cached_maps("ap", site, config_of(*overrides), tokens, [0.0], compute)
            made[name] = len(list((tmp_path / "store").glob("ap-*.safetensors")))
    assert list(made.values()) == list(range(1, len(CHANGES) + 2))


@pytest.mark.parametrize("common", [{"dtype": "float32"}, {"checkpoint": "b"}])
def test_another_model_or_type_is_another_map(small, pair, tmp_path, common):
    model = small("gpt2")
    for each in ({"dtype": "float64", "checkpoint": "a"}, {"dtype": "float64", "checkpoint": "a"} | common):
        with use_cache(ResultCache(tmp_path, each)):
            compute = functools.partial(lambda: {"ap": activation_patching(model, pair, metric="kl")})
            cached_maps("ap", "heads", config_of("metric=kl"), [tokenize(model, pair)], [0.0], compute)
    assert len(list(tmp_path.glob("ap-*.safetensors"))) == 2


def test_the_text_of_a_function_counts(small, pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, model = config_of("metric=custom", "metric.function=kept_metrics:first"), small("gpt2")
    for text in (FUNCTIONS, FUNCTIONS.replace("logits[:, 0]", "logits[:, 2]")):
        (tmp_path / "kept_metrics.py").write_text(text)
        with use_cache(ResultCache(tmp_path / "store", {})):
            compute = functools.partial(lambda: {"ap": activation_patching(model, pair)})
            cached_maps("ap", "heads", config, [tokenize(model, pair)], [0.0], compute)
    assert len(list((tmp_path / "store").glob("ap-*.safetensors"))) == 2


def test_what_was_kept_before_there_were_metrics_and_positions_is_found(small, pair, tmp_path):
    model, common = small("gpt2"), {"checkpoint": "x"}
    tokens = tokenize(model, pair)
    inputs = {"site": "heads", "direction": "noising", "pairs": [tokens.identity]}
    identity = json.dumps({"kind": "ap", **common, "inputs": inputs}, sort_keys=True)
    computed = activation_patching(model, pair)
    with use_cache(ResultCache(tmp_path, common)):
        cached_maps("ap", "heads", config_of(), [tokens], [0.0], lambda: {"ap": computed})
    (file,) = tmp_path.glob("*.safetensors")
    assert file.name == f"ap-{hashlib.sha256(identity.encode()).hexdigest()[:24]}.safetensors"
    assert set(cache.tensors_file.read(file)[1]) == {"effect/ap", "gap/ap", "signed/ap"}


@contextmanager
def killed_in(layer, monkeypatch):
    """Patches end in this layer as by Ctrl-C; gives the layers that were patched."""
    patches, seen = Suffix.patches, []

    def patched(self, site, here, *ends):
        if here == layer:
            raise KeyboardInterrupt
        seen.append(here)
        return patches(self, site, here, *ends)

    with monkeypatch.context() as patch:
        patch.setattr(Suffix, "patches", patched)
        yield seen


@pytest.mark.parametrize(("positions", "masks"), [("all", 1), ("each", 4)])
def test_a_kill_in_a_layer_loses_that_layer_alone(small, pair, tmp_path, monkeypatch, positions, masks):
    monkeypatch.setattr(cache, "PART_EVERY", 0.0)
    model = small("gpt2")
    computed = activation_patching(model, pair, "neurons", positions=positions)
    config, tokens = config_of(f"positions={positions}"), [tokenize(model, pair)]

    def kept():
        with use_cache(ResultCache(tmp_path, {})):
            compute = functools.partial(
                lambda: {"ap": activation_patching(model, pair, "neurons", positions=positions)}
            )
            return cached_maps("ap", "neurons", config, tokens, [computed.min_gap], compute)["ap"]

    n_layers = model.cfg.n_layers
    with killed_in(n_layers - 1, monkeypatch) as before, pytest.raises(KeyboardInterrupt):
        kept()
    assert before == list(range(n_layers - 1))
    with killed_in(None, monkeypatch) as after:
        equal(kept(), computed)
    # All positions first, then each that the change reaches; of the first the killed layer alone is left.
    assert after[0] == n_layers - 1
    assert len(after) >= masks
    assert after.count(0) == len([layer for layer in after if layer == n_layers - 1]) - 1
    assert not list(tmp_path.glob("part-*.safetensors")), "the whole map holds them"
    with killed_in(0, monkeypatch):
        equal(kept(), computed)


def test_parts_of_another_map_are_not_taken(small, pair, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "PART_EVERY", 0.0)
    model, tokens = small("gpt2"), [tokenize(small("gpt2"), pair)]
    for metric in ("kl", "js"):
        computed = activation_patching(model, pair, metric=metric)
        config = config_of(f"metric={metric}")

        def kept(metric=metric, config=config, least=computed.min_gap):
            with use_cache(ResultCache(tmp_path, {})):
                compute = functools.partial(lambda: {"ap": activation_patching(model, pair, metric=metric)})
                return cached_maps("ap", "heads", config, tokens, [least], compute)["ap"]

        if metric == "kl":
            with killed_in(model.cfg.n_layers - 1, monkeypatch), pytest.raises(KeyboardInterrupt):
                kept()
        else:
            equal(kept(), computed)
    assert list(tmp_path.glob("part-*.safetensors")), "those of the map that is not whole"
