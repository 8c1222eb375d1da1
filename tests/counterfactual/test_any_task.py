"""Searches of any task: the presets' prompts, given prompts in a search's numbers, and the command with files."""

import json
from dataclasses import replace

import pytest
import torch
from helpers.small_searches import SPACE
from hydra.core.global_hydra import GlobalHydra
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import igap
from igap import cli
from igap.cli.compose import compose_searches
from igap.counterfactual.output.terminal import sentences
from igap.counterfactual.plan import given_prompts, plan_studies
from igap.counterfactual.spaces.prepare import prepare
from igap.counterfactual.spaces.template import split_entry
from igap.counterfactual.trials.storages import open_storage
from igap.counterfactual.workers import open_session
from igap.engine.activations import borrow
from igap.errors import InputError
from igap.inputs.files import read_pairs
from igap.inputs.ioi import generate_ioi
from igap.inputs.words import NAMES


def whole_words(texts):
    """A tokenizer of these texts' words, in which every digit is a token, as SmolLM2's has them."""
    cut = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)])
    words = sorted({word for text in texts for word, _ in cut.pre_tokenize_str(text)})
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", *words])}, unk_token="<unk>"))
    raw.pre_tokenizer, raw.decoder = cut, decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="<unk>", bos_token="<unk>")


def country(text):
    return {"Paris": "France", "London": "England", "Rome": "Italy", "Tokyo": "Japan"}.get(text.split()[4].strip(","))


def pronoun(text):
    boys = "John Peter Paul David Mark James Robert George Thomas Michael Henry Frank Edward Richard Daniel".split()
    return "he" if text.split()[4] in boys else "she"


def verb(text):
    return "are" if text.split()[1].endswith("s") else "is"


@pytest.mark.parametrize(
    ("preset", "right", "n_different"),
    [("capital_country", country, 1), ("gendered_pronoun", pronoun, 1), ("subject_verb", verb, 1)],
)
def test_the_prompts_of_a_preset_ask_what_its_name_says(preset, right, n_different):
    (config,) = compose_searches([], preset)
    space, pair = config.search.space, config.prompts
    words = [word for words in space.slots.values() for entry in words for word in (entry.replace("=", " "),)]
    tokenizer = whole_words([*words, pair.clean, pair.corrupted, pair.answer, pair.distractor])
    given = given_prompts(config, tokenizer)
    pairs = prepare(given.pair, tokenizer, space=space, clean_n=6, heldout_n=6, seed=1).pairs
    assert len({made.clean for made in pairs}) == len(pairs) == 24
    for made in pairs:
        both = list(zip(made.clean.split(), made.corrupted.split(), strict=True))
        assert sum(one != other for one, other in both) == n_different
        assert made.answer != made.distractor
        for text, word in ((made.clean, made.answer), (made.corrupted, made.distractor)):
            assert right(text) in (word.strip(), None), text
    if preset == "subject_verb":
        nouns = {(made.clean.split()[1].rstrip("s"), made.corrupted.split()[1].rstrip("s")) for made in pairs}
        assert all(one == other for one, other in nouns), "one noun in both numbers"
    assert split_entry("South Korea; country=Asia's; of=x y") == ("South Korea", {"country": "Asia's", "of": "x y"})


def test_the_preset_greater_than_has_the_slots_of_its_file():
    (config,) = compose_searches([], "greater_than")
    rows = read_pairs("greater-than-digits").values()
    tokenizer = whole_words([text for row in rows for text in row.values()])
    given = given_prompts(config, tokenizer)
    assert len(given.pair) == 30
    prepared = prepare(given.pair, tokenizer, space=config.search.space, clean_n=config.clean.n, heldout_n=6)
    slots = {slot.name: slot.options for slot in prepared.space.slots}
    assert list(slots) == ["event", "century", "decade", "year"]
    assert set(slots["decade"]) == {"=keep", "=other", *"1234567"}
    assert prepared.neutral == ("event", "century", "year")
    assert len(prepared.pairs) - config.clean.n - config.heldout.n == 20, "enough for a percentile"


def test_the_mean_of_the_component_is_that_of_the_ordinary_prompts_that_were_given(small, pair):
    """Against hooks of TransformerLens: z averaged over the reference prompts, put into the clean runs."""
    model, head = small("gpt2"), (1, 2)

    def named(first, second, place="store"):
        texts = (text.replace("John", "{0}").replace("Mary", "{1}").format(first, second) for text in pair.texts)
        clean, corrupted, answer, distractor = (text.replace("store", place) for text in texts)
        return replace(pair, clean=clean, corrupted=corrupted, answer=answer, distractor=distractor)

    names = ("John", "Mary", "Tom", "Anna")
    every = [(one, other) for one in names for other in names if one != other]
    reference = [named(*two, place) for two in every for place in ("milk", "cat")]
    clean = [named(*two) for two in every[:3]]
    found = igap.search(
        model, clean, "1.2", space=SPACE, reference=reference, heldout=[named(*every[3])], constraints=NONE, until=4,
        control=1, clean_n=3, heldout_n=1,
    )  # fmt: skip
    name = f"blocks.{head[0]}.attn.hook_z"
    with torch.no_grad():
        tokens = torch.cat([model.to_tokens(each.clean, prepend_bos=True) for each in reference])
        mean = model.run_with_cache(tokens, names_filter=name)[1][name].mean(0)
        effects = []
        for each in clean:
            right, wrong = (model.to_tokens(text, prepend_bos=False)[0, 0] for text in each.texts[2:])

            def put(z, hook):
                z[:, :, head[1]] = mean[:, head[1]]
                return z

            own = model.to_tokens(each.clean, prepend_bos=True)
            runs = (model(own), model.run_with_hooks(own, fwd_hooks=[(name, put)]))
            before, after = (logits[0, -1, right] - logits[0, -1, wrong] for logits in runs)
            effects.append((after - before).item())
    assert found.validation.deletion.ap == pytest.approx(sum(effects) / 3, rel=1e-5, abs=1e-7)
    assert {each.clean for each in found.clean} == {each.clean for each in clean}
    assert any("the corrupted prompts of their own pairs" in line for line in sentences(found))
    with_fewer = igap.search(
        model, clean, "1.2", space=SPACE, reference=reference[:19], constraints=NONE, until=2, control=1, clean_n=3,
        heldout_n=0,
    )  # fmt: skip
    assert with_fewer.validation.deletion.reason == "there are 19 ordinary prompts, fewer than 20"


def test_a_search_over_several_lengths_reports_what_each_pair_has_when_patched_alone(small, pair):
    """Answers of one and of two tokens, in sentences of two lengths; the mean is that of prompts of each length."""
    model = small("gpt2")

    def named(first, second, place, thing):
        texts = [text.replace("John", "{0}").replace("Mary", "{1}").format(first, second) for text in pair.texts]
        clean, corrupted, answer, distractor = texts
        clean, corrupted = (text.replace("store", place).replace("bottle of milk", thing) for text in texts[:2])
        longer = " dog" if thing == "cat" else ""
        return replace(pair, clean=clean, corrupted=corrupted, answer=answer + longer, distractor=distractor)

    names = ("John", "Mary", "Tom", "Anna")
    every = [(one, other) for one in names for other in names if one != other]
    things = ("cat", "bottle of milk")
    reference = [named(*two, place, thing) for two in every for place in ("milk", "dog") for thing in things]
    clean = [named(*two, "store", things[i % 2]) for i, two in enumerate(every[:6])]
    options = {"space": SPACE, "clean_lengths": "any", "metric": "logprob", "until": 4, "control": 1, "heldout_n": 2}
    found = igap.search(model, clean, "1.2", reference=reference, constraints=NONE, clean_n=4, **options)
    validation = found.validation
    assert len({len(model.tokenizer(each.clean)["input_ids"]) for each in found.clean}) == 2

    def ap(each, **options):
        return igap.activation_patching(model, each, metric="logprob", **options).effect[1, 2].item()

    effects = [ap(each) for each in validation.pairs]
    assert validation.best_effects.ap == pytest.approx(sum(effects) / len(effects), abs=1e-7), "kept in float32"
    assert found.trials[validation.best.trial].effects == pytest.approx(effects, abs=1e-9)
    by_hand = [ap(each) for each in found.clean]
    assert abs(sum(by_hand)) / 4 == pytest.approx(abs(validation.reference.value), abs=1e-9)
    held = [each for each in clean if each not in found.clean]
    assert abs(sum(map(ap, held))) / 2 == pytest.approx(abs(validation.heldout.reference), abs=1e-9)
    deleted = []
    for each in found.clean:
        alike = tuple(other.clean for other in reference if len(other.clean.split()) == len(each.clean.split()))
        deleted.append(ap(each, baseline=igap.Baseline("mean", prompts=alike)))
    assert validation.deletion.ap == pytest.approx(sum(deleted) / 4, abs=1e-7)
    assert 0 <= validation.plausibility.percentile <= 100
    assert 0 <= validation.plausibility.downstream.percentile <= 100
    fewer = igap.search(model, clean, "1.2", reference=reference[:-20], constraints=NONE, clean_n=2, **options)
    reason = "there are 14 ordinary prompts of some clean prompts' length, fewer than 20"
    assert fewer.validation.deletion.reason == reason
    with pytest.raises(
        InputError, match=r"^constraints\.min_clean: got 0, a bound of the logit difference, [^\n]*=null\.$"
    ):
        igap.search(model, clean, "1.2", clean_n=2, **options)


NONE = igap.Constraints(min_clean=None)
ASKED = ["search", "head=0.4", "search.until=12", "search.control=4", "clean.n=2", "heldout.n=2", "device=cpu"]
QUIET = ["tracking=disabled", "full_run=false", "constraints.min_clean=null"]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two files of pairs in the current folder, with a template of their own for the same sentences."""
    template = "Today {one} met {two} near the {place}, and {who} {does} a {thing} to"
    made = generate_ioi(40, 5, templates=[9], names=NAMES[:12])
    rows = [[each.clean, each.corrupted, each.answer, each.distractor, template] for each in made]
    header = ["clean", "corrupted", "answer", "distractor", "template"]
    for name, some in (("pairs.json", rows[:-1]), ("twice.json", rows[:1]), ("none.json", [])):
        (tmp_path / name).write_text(json.dumps([dict(zip(header, row, strict=True)) for row in some]))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    GlobalHydra.instance().clear()


def test_a_study_on_a_file_goes_on_and_is_refused_on_another(files, ioi_mini):
    def opened(storage, *overrides):
        (config,) = compose_searches([*ASKED[2:], *QUIET, "head='0.4'", "clean.file='pairs.json'", *overrides])
        (study,), _ = plan_studies([config])
        return open_session(study, ioi_mini, storage)

    storage = open_storage("memory", files)
    with borrow(ioi_mini):
        session = opened(storage)
        session.explore(8)
        assert len(opened(storage).trials.all()) == 8
        read = read_pairs("pairs.json").values()
        texts = {row["clean"]: row["corrupted"] for row in read}
        assert [texts[each.clean] for each in session.bound.pairs] == [each.corrupted for each in session.bound.pairs]
        assert session.space.left_out["pairs of another template or length"] > 0
        with pytest.raises(InputError, match="clean prompts"):
            opened(storage, "seed=1")
        everywhere = [*session.bound.pairs, *session.heldout.pairs, *session.ordinary]
        assert len({each.clean for each in everywhere}) + sum(session.space.left_out.values()) == len(read)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["clean.file=pairs.json", "heldout.file=pairs.json"], "pairs.json, row "),
        (["clean.file=twice.json"], "clean.n: got 4 clean prompts (heldout.n counted), but the given pairs have 1 of "),
        (["clean.file=none.json"], "clean.file: got none.json, which holds no row"),
        (
            ["clean.file=twice.json", "metric=logprob"],
            "clean.n: got 4 clean prompts (heldout.n counted), but the given",
        ),
        (["clean.file=pairs.json", "clean.lengths=any", "head=0.4@9"], "head: got 0.4@9, positions of the first clean"),
        (["heldout.file=nowhere.csv"], "heldout.file: got nowhere.csv, which cannot be read"),
        (["clean.file=pairs.json", "prompts.answer= Mary"], "prompts.answer: got ' Mary' together with clean.file"),
        (["prompts.file=pairs.json"], "prompts: got several pairs, wanted the one pair that the search starts from"),
        (["clean.file=pairs.json", "head=0.4@0"], "head: got 0.4@0, position 0, which no prompt of the space changes"),
    ],
)
def test_bad_files_are_refused_before_the_model_loads(files, capsys, monkeypatch, overrides, message):
    monkeypatch.setattr("igap.models.cached.cached_model", None)
    assert cli.main([*ASKED, *QUIET, *overrides]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"igap: {message}")
    assert error.count("\n") == 1
