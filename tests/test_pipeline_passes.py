"""What a run asks of the model: each prompt once, each text once, the weights once; and nothing is left of it."""

from collections import Counter

import pytest
import torch

from igap import load_model, pipeline
from igap.cli.compose import compose_one
from igap.engine import backend
from igap.engine import open_pairs as opening
from igap.engine.open_pairs import open_pairs
from igap.models import cached

QK = 7
"""Passes of queries and keys: q, k, v of both runs, z of the other, z of each of the three, and one with gradients."""


@pytest.fixture
def counted(checkpoint, monkeypatch):
    """Runs the random GPT-2; gives the result and how often it was run, tokenised for and read."""
    counts = Counter()

    def spy(owner, name):
        function = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, **options: counts.update([name]) or function(*given, **options))

    def load(*given, **options):
        model = load_model(*given, **options)
        model.unembed.register_forward_hook(lambda *_: counts.update(["pass"]))
        counts.clear()  # the loader tries the model
        return model

    monkeypatch.setattr(cached, "load_model", load)
    spy(opening, "tokenize")
    spy(opening, "record")
    spy(backend, "read")

    def run(*overrides):
        cached._cached_model.cache_clear()
        settings = ["model=hf", f"model.name={checkpoint('gpt2')}", "prompts.min_gap=0", "device=cpu", "ig.n_steps=2"]
        found = pipeline.run(compose_one([*settings, *overrides]).config)
        assert not found.failures
        return found, dict(counts)

    yield run
    cached._cached_model.cache_clear()


def test_a_default_run_makes_each_run_once_and_reads_the_weights_once(counted):
    checks = 1  # of both sites together
    assert counted()[1] == {"tokenize": 1, "record": 2, "read": 1, "pass": 2 + checks + QK}


def test_every_baseline_and_direction_shares_the_runs_of_several_pairs(counted, pair_file):
    found, counts = counted(f"prompts.file={pair_file}", "baseline=zero", "faithfulness=heads")
    groups = 3
    assert len(found.pairs) == 5
    assert counts == {"tokenize": 5, "record": 2 * groups, "read": 1, "pass": (2 + QK) * groups + 1}


def test_what_does_not_fit_is_made_again_to_the_same_numbers(small, pair_file):
    pairs = pipeline.check(compose_one([f"prompts.file={pair_file}", "model.name=ioi-mini"]).config).pairs
    pairs = [pairs[index] for index in (0, 1, 2)]

    def effects(opened):
        return [contrast.patches("heads", 1)(torch.arange(4)) for _, contrast in opened.contrasts("zero")]

    with open_pairs(small(), pairs, kept_bytes=1e9) as all_kept:
        first = [contrast for _, contrast in all_kept.contrasts("zero")]
        assert [contrast for _, contrast in all_kept.contrasts("zero")] == first
        assert next(all_kept.contrasts())[1].clean is first[0].clean, "shared by every baseline"
        needed, expected = sum(all_kept._held.values()), effects(all_kept)
    with open_pairs(small(), pairs, kept_bytes=needed - 1.0) as some_kept:
        before, again = ([contrast for _, contrast in some_kept.contrasts("zero")] for _ in range(2))
        assert before[0] is again[0]
        assert before[-1] is not again[-1]
        assert sum(some_kept._held.values()) < needed
        assert all(map(torch.equal, effects(some_kept), expected))
    ends = sum(tensor.nbytes for layers in first[0].source.values() for tensor in layers)
    with open_pairs(small(), pairs, kept_bytes=1.5 * ends) as nothing_kept:  # enough for them, not for the runs
        before, again = (next(nothing_kept.contrasts("zero"))[1] for _ in range(2))
        assert before is not again
        assert not nothing_kept._kept
        assert all(map(torch.equal, effects(nothing_kept), expected))
    assert not all_kept._kept, "let go of with the block"
