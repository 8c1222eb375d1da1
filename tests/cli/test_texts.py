"""Texts and paths on the command line: what arrives in the config is what was typed, whatever it looks like."""

import os
from pathlib import Path

import pytest
from helpers import hostile_values
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from igap import cli
from igap.cli.compose import compose_jobs, compose_one, compose_searches
from igap.cli.multirun import sweep_request
from igap.cli.texts import _FUNCTION, _PATHS, _SEPARATED, _kinds, quote_override
from igap.config import RunConfig, field_at
from igap.counterfactual.config import SearchConfig
from igap.errors import InputError

RUN_TEXTS = [key for key, kind in _kinds().items() if field_at(tuple(key.split(".")), RunConfig) and not kind.several]
SEARCH_TEXTS = [key for key in _kinds() if field_at(tuple(key.split(".")), SearchConfig) and key not in RUN_TEXTS]
PEOPLE = [("Tom", "Anna"), ("Mary", "Tom"), ("John", "Tom")]
FREE = ["model.name", "model.revision", "tracking.project", "tracking.entity", "tracking.group", "output"]
"""Of a run and of a search, without a grammar of their own."""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    GlobalHydra.instance().clear()


def at(config, key):
    for name in key.split("."):
        config = config[name] if isinstance(config, dict) else getattr(config, name)
    return config


def typed(key, text):
    """The key with a text in it, as `igap run` gives it to Hydra."""
    return [quote_override(f"{key}={text}")]


def arrived(override):
    """What Hydra and OmegaConf read an override's value as."""
    found = OverridesParser.create().parse_override(override)
    assert not found.is_sweep_override(), override
    (value,) = OmegaConf.to_container(OmegaConf.create([found.value()]), resolve=True)
    return value


def test_every_text_of_a_run_is_known_by_its_type():
    assert set(FREE) < set(RUN_TEXTS)
    assert {"prompts.file", "ablation.file", "sweep", "device", "interactions", "prompts.answer"} < set(RUN_TEXTS)
    assert {"name", "head", "search.space.file", "search.space.vocabulary"} < set(SEARCH_TEXTS)
    assert "search.space.slots.*" in _kinds()
    assert not {"seed", "ig.n_steps", "model.dtype", "curves.alphas", "ablation.also", "objective"} & set(_kinds())


@pytest.mark.parametrize("key", [key for key, kind in _kinds().items() if not kind.several])
def test_whatever_is_typed_is_what_hydra_reads(key):
    """A comma parts the values of the few keys of which a multirun makes sense."""
    for text in hostile_values.TEXTS:
        if not (key in _SEPARATED and "," in text):
            assert arrived(quote_override(f"{key}={text}")) == text


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
@settings(deadline=None, max_examples=100)
def test_any_text_at_all_is_read_as_it_was_typed(text):
    if text[0] not in "'\"" and not _FUNCTION.fullmatch(text):
        assert arrived(quote_override(f"tracking.project={text}")) == text


@pytest.mark.parametrize("text", ["007", "1e5", "2024-01-31", "yes", "${seed}", "a\\", "x_[a]; {b}='c' #🙂"])
def test_what_is_typed_is_what_a_run_a_multirun_and_a_search_get(text):
    keys = [key for key in FREE if not (key == "output" and "${" in text)]  # which Hydra would resolve there
    overrides = [quote_override(f"{key}={text}") for key in keys]
    (job,) = compose_jobs(overrides)
    (search,) = compose_searches(["head='1.2'", *overrides])
    assert [(at(job.config, key), at(search, key)) for key in keys] == [(text, text)] * len(keys)


def test_a_folder_that_hydra_would_read_another_name_into_is_refused():
    with pytest.raises(InputError, match=r"output: got 'a\$\{seed\}', wanted a folder without \$\{ in its name"):
        compose_one([quote_override("output=a${seed}")])


def test_leading_zeros_survive_in_the_name_of_a_sweep_and_of_a_search():
    assert compose_one(typed("sweep", "007")).config.sweep == "007"
    (search,) = compose_searches(["head='1.2'", *typed("name", "007")])
    assert search.name == "007"


def test_lists_of_texts_are_texts():
    (search,) = compose_searches(
        [
            "head='1.2'",
            "search/space=substitute",
            quote_override("search.space.vocabulary=[1900, 007,'a, b',yes,=f[0]]"),
        ]
    )
    assert search.search.space.vocabulary == ("1900", "007", "a, b", "yes", "=f[0]")
    (search,) = compose_searches(["head='1.2'", quote_override("search.space.slots.verb=[1e5,null]")])
    assert search.search.space.slots["verb"] == ("1e5", "null")


@pytest.mark.parametrize("key", _PATHS)
def test_any_name_of_a_file_works_in_every_key_that_takes_a_path(key, tmp_path):
    for name in hostile_values.FILE_NAMES:
        for file in (name, f"{name}.csv") if name != "null" else ("null.csv",):
            (tmp_path / file).write_text("a file\n")
            assert arrived(quote_override(f"{key}={file}")) == file


@pytest.mark.parametrize("name", ["a, b=[c]", "${x}#%d {y}", "-\n\\it's 🙂"])
def test_files_of_any_name_are_read_by_runs_sweeps_and_searches(name, tmp_path, capsys):
    pairs = tmp_path / f"{name}.csv"
    pairs.write_bytes(b"clean,corrupted,answer,distractor\nJohn gave it to,Mary gave it to, Mary, John\n")
    prompts = tmp_path / f"{name}.txt"
    prompts.write_text(
        "".join(f"After {a} and {b} went to the store, {b} gave a bottle of milk to\n" for a, b in PEOPLE)
    )
    assert cli.main(["check", f"prompts.file={pairs.name}", "prompts.min_gap=0"]) == 0
    few = ["baseline=corrupted", "ig.n_steps=2,5"]
    swept = [f"prompts.file={pairs.name}", "output=o" + name.replace("${", "$"), *few]
    assert cli.main(["check", "sweep", "ig_steps", *swept]) == 0
    searched = [f"search.space.file={prompts.name}", "search/space=prompts", "clean.n=1", "heldout.n=0", "head=1.2"]
    assert cli.main(["check", "search", *searched, f"output=s{name}"]) == 0
    assert capsys.readouterr().err.replace("check jobs\n", "") == ""


def test_commas_part_the_values_of_a_multirun_unless_a_file_has_them_in_its_name(tmp_path):
    asked = quote_override("prompts.file=a.csv,null,'b,c.csv'")
    assert [job.config.prompts.file for job in compose_jobs([asked])] == ["a.csv", None, "b,c.csv"]
    (tmp_path / "a.csv,null,'b,c.csv'").write_text("")
    (job,) = compose_jobs([quote_override("prompts.file=a.csv,null,'b,c.csv'")])
    assert job.config.prompts.file == "a.csv,null,'b,c.csv'"


def test_a_choice_of_texts_is_of_texts():
    jobs = compose_jobs([quote_override("prompts.answer=choice(5,007,null,'a, b')")])
    assert [job.config.prompts.answer for job in jobs[:2]] == ["5", "007"]
    assert "got nothing, wanted a text" in jobs[2].reason
    assert jobs[3].config.prompts.answer == "a, b"


@pytest.mark.parametrize(
    "asked", ["model.revision=choice(007,1e5)", "model.revision='007',1e5", "model.revision=shuffle(007,1e5)"]
)
def test_every_way_to_name_several_texts_gives_the_texts_that_were_typed(asked):
    assert {job.config.model.revision for job in compose_jobs([quote_override(asked)])} == {"007", "1e5"}


GRIDS = {
    "texts": (
        "hydra: {sweeper: {params: {model.revision: 007, prompts.answer: [1e5, ' John'], ig.n_steps: [2, 3]}}}",
        ("model.revision='007'", "prompts.answer='1e5',' John'", "ig.n_steps=2,3"),
    ),
    "none": (
        "hydra: {sweeper: {params: {baseline.prompt: [~, 'x y'], prompts.file: null}}}",
        ("baseline.prompt=null,'x y'", "prompts.file=null"),
    ),
    "a merge": (
        "b: &b {model.revision: main}\nhydra: {sweeper: {params: {<<: *b, seed: '1,2'}}}",
        ("model.revision='main'", "seed=1,2"),
    ),
    "another place": (
        "grid: {model.name: gpt2, seed: '1,2'}\nhydra: {sweeper: {params: '${grid}'}}",
        ("model.name='gpt2'", "seed=1,2"),
    ),
}


@pytest.mark.parametrize("kind", GRIDS)
def test_texts_of_a_sweep_file_stand_as_in_the_file(kind, tmp_path, monkeypatch):
    text, lines = GRIDS[kind]
    folder = tmp_path / "sweeps"
    folder.mkdir()
    (folder / "mine.yaml").write_text(text)
    monkeypatch.setattr("igap.cli.settings.SWEEPS", folder)
    assert sweep_request("mine", []).overrides == ("sweep='mine'", *lines)


def test_bytes_that_are_no_text_are_refused_in_one_line():
    with pytest.raises(InputError, match=r"'output': got 'a\\udcff', which is no UTF-8 text"):
        quote_override(f"output={os.fsdecode(b'a' + bytes([255]))}")


def test_hydras_own_folders_keep_their_interpolations():
    assert quote_override("hydra.run.dir=my runs, ${now:%Y}") == "hydra.run.dir='my runs, ${now:%Y}'"
    assert Path(compose_one([quote_override("hydra.run.dir=my runs, ${now:%Y}")]).config.output) == Path("runs")
