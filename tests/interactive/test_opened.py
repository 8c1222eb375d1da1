"""Finished runs and sweeps, opened again: as they were, or refused in one line."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from helpers.damaged_results import damaged, damages

from igap import InputError, compare, open_run, open_sweep
from igap.interactive.opened import TENSORS


@pytest.mark.parametrize(("of", "place"), [("result", "written"), ("many", "many_written")])
def test_an_opened_run_holds_the_maps_comparisons_and_config_that_were_written(of, place, request):
    result, folder = request.getfixturevalue(of), request.getfixturevalue(place)
    opened = open_run(folder)
    assert opened.config == result.config
    assert opened.maps.keys() == result.maps.keys()
    for site, maps in result.maps.items():
        assert list(opened.maps[site]) == list(maps)
        for method, made in maps.items():
            found = opened.maps[site][method]
            assert torch.equal(found.effect, made.effect)
            assert torch.allclose(found.score, made.score, rtol=0, atol=0, equal_nan=True), "to the last bit"
            assert (found.gap, found.min_gap, found.signed) == (made.gap, made.min_gap, made.signed)
            assert (found.baseline, found.direction) == (made.baseline, made.direction)
            assert [each.gap for each in found.pairs] == [each.gap for each in made.pairs]
        expected = result.comparisons[site]
        assert opened.comparisons[site].summary() == pytest.approx(expected.summary(), nan_ok=True, rel=1e-12)
        assert opened.summary[f"{site}/n_outliers"] == expected.summary()["n_outliers"]
    assert torch.equal(opened.maps["heads"]["ig"].delta, result.maps["heads"]["ig"].delta)
    assert torch.equal(opened.maps["heads"]["ig"].n_steps, result.maps["heads"]["ig"].n_steps)


def test_its_tables_are_those_of_the_folder_with_every_digit_and_text(many, many_written):
    tables = open_run(many_written).tables
    assert tables.keys() == {path.stem for path in many_written.glob("*.csv")}
    assert tables["pairs"]["gap"].tolist() == list(many.gaps)
    assert tables["pairs"]["answer"].tolist() == [pair.answer for pair in many.pairs]
    assert tables["heads"]["name"].map(type).eq(str).all(), "head 0.10 is no number"
    shown = open_run(many_written).comparisons["heads"].to_frame()
    assert np.array_equal(tables["heads"]["ap"], shown["ap"])


def test_the_completeness_check_of_an_opened_map_is_refused_as_its_rounding_is_not_on_disk(written, many_written):
    for folder in (written, many_written):
        with pytest.raises(InputError, match="F's rounding"):
            open_run(folder).maps["heads"]["ig"].incomplete_layers()
        assert open_run(folder).maps["heads"]["ap"].incomplete_layers() == []


def test_an_opened_run_says_what_it_is_and_stays_open_when_the_working_folder_changes(written, monkeypatch, tmp_path):
    monkeypatch.chdir(written.parent)
    opened = open_run(written.name)
    assert re.fullmatch(r"Run\(.*, noising, corrupted baseline; gap .* logits, heads r .*; \S+\)", repr(opened))
    assert repr(opened).endswith(f"; {written.name})")
    assert opened._repr_html_().count("<table") == 2
    monkeypatch.chdir(tmp_path)
    assert len(opened.tables["heads"]) == 12
    assert str(written) in repr(opened)


def test_a_figure_of_an_opened_run_is_the_one_the_run_draws(written, tmp_path):
    opened = open_run(written)
    for name in ("heads_scatter", "output_curves"):
        axes = opened.plot(name)
        assert axes._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(InputError, match=r"^name: got 'heads_scater', wanted one of .* Did you mean heads_scatter\?$"):
        opened.plot("heads_scater")
    copy = tmp_path / "old"
    shutil.copytree(written, copy)
    (copy / "record.safetensors").unlink()
    with pytest.raises(InputError, match="runs of an older igap have none"):
        open_run(copy).plot()


def _without(folder, *names):
    for name in names:
        (folder / name).unlink()


def _summary(folder, **changed):
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


REFUSED = {
    "no_such": (lambda f: shutil.rmtree(f), "which is no folder, wanted a run's"),
    "a_file": (lambda f: (shutil.rmtree(f), f.write_text("x")), "which is no folder"),
    "empty": (lambda f: (shutil.rmtree(f), f.mkdir()), "which is no run's"),
    "unfinished": (lambda f: _without(f, "summary.json"), "a run that is not finished"),
    "a_search": (lambda f: (f / "summary.json").rename(f / "search_summary.json"), "which is a search's"),
    "newer": (lambda f: _summary(f, schema=2), "its schema is 2, this igap knows 1"),
    "no_config": (lambda f: _without(f, "config.json"), "its settings cannot be read"),
    "no_tensors": (lambda f: _without(f, TENSORS), TENSORS),
    "a_changed_table": (lambda f: (f / "heads.csv").write_text("name,ig\n0.0,1\n"), "heads.csv changed since the run"),
    "a_missing_table": (lambda f: _without(f, "neurons.csv"), "neurons.csv changed since the run"),
    "another_gap": (lambda f: _summary(f, gap=1e9), "are not the effects over the gap"),
    "no_gap": (lambda f: _summary(f, gap=None), "not as a run leaves them"),
    "more_pairs": (lambda f: _summary(f, n_pairs=3), "not as a run leaves them"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_whole_run_is_refused_in_one_line(what, written, tmp_path):
    do, reason = REFUSED[what]
    copy = tmp_path / "run"
    shutil.copytree(written, copy)
    do(copy)
    with pytest.raises(InputError, match=re.escape(reason)) as refused:
        open_run(copy)
    assert str(refused.value).isprintable()
    assert str(refused.value).startswith("folder: ")


def test_what_failed_in_a_run_is_told(written, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(written, copy)
    _summary(copy, failed="curves", **{"curves": None, "curves/reason": "no memory"})
    opened = open_run(copy)
    assert opened.failures == {"curves": "no memory"}
    assert "failed: curves" in repr(opened)
    assert "failed: curves" in opened._repr_html_()


def test_of_several_runs_the_refusal_names_open_sweep(written):
    with pytest.raises(InputError, match=r"which holds several runs.*Use igap\.open_sweep"):
        open_run(written.parent)


def opened_or_refused(folder):
    """The run, or why it cannot be opened."""
    try:
        return open_run(folder)
    except InputError as error:
        return str(error)


def test_no_damage_to_any_file_breaks_it_or_changes_a_number(written, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(written, source, ignore=shutil.ignore_patterns("plots", "wandb", ".hydra", "*.csv"))
    shutil.copy(written / "heads.csv", source)
    (source / "record.safetensors").unlink()  # whose digests alone would refuse everything
    whole = open_run(source)
    known = damages(source)
    chosen = [each for i, each in enumerate(known) if i % 12 == 0 or not each.description.startswith("summary.json")]
    chosen = [*chosen[::5], *(each for each in known if each.description.startswith("summary.json: gap is "))]
    n_opened = 0
    for number, damage in enumerate(chosen):
        copy = damaged(source, tmp_path / f"{number:04}", damage)
        answer = opened_or_refused(copy)
        if isinstance(answer, str):
            assert answer.isprintable(), damage.description
            assert len(answer) < 1500, damage.description
        else:
            n_opened += 1
            assert "<script" not in repr(answer) + answer._repr_html_(), damage.description
            for method, made in whole.maps["heads"].items():
                assert torch.equal(answer.maps["heads"][method].effect, made.effect), damage.description
                assert torch.equal(answer.maps["heads"][method].score, made.score), damage.description
    assert 0 < n_opened < len(chosen) - 20


@pytest.mark.parametrize("content", ["", 'a,b\n"1', b"\xff\xfe,"])
def test_a_table_that_cannot_be_read_is_refused_when_it_is_asked_for(content, written, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(written, copy)
    (copy / "record.safetensors").unlink()
    (copy / "heads.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    opened = open_run(copy)
    with pytest.raises(InputError, match=r"^folder: .*heads\.csv cannot be read \(.*\)\. Run it again\.$"):
        opened.tables["heads"]


def test_a_sweep_is_a_table_and_opens_a_run_when_it_is_asked_for(written, many_written, tmp_path):
    for name, folder in (("one", written), ("two", many_written)):
        shutil.copytree(folder, tmp_path / "sweep" / name)
    sweep = open_sweep(tmp_path / "sweep")
    assert (len(sweep), sweep.labels, sweep.problems) == (2, ("one", "two"), ())
    frame = sweep.to_frame(["gap", "n_pairs"])
    assert (frame.index.name, frame.index.tolist()) == ("run", ["one", "two"])
    assert frame["n_pairs"].tolist() == [1, 5]
    assert frame.loc["one", "gap"] == open_run(written).summary["gap"]
    assert frame.loc["two", "prompts.min_gap"] == 0.2, "a setting has its own type"
    assert sweep["two"].maps["heads"]["ap"].pairs
    assert [run.folder.name for run in sweep] == ["one", "two"] == [sweep[i].folder.name for i in range(2)]
    assert "2 finished runs" in repr(sweep)
    assert "<table" in sweep._repr_html_()
    (tmp_path / "sweep" / "one" / TENSORS).unlink()
    assert len(open_sweep(tmp_path / "sweep")) == 2, "nothing of it is read before it is asked for"
    with pytest.raises(InputError):
        sweep["one"]
    with pytest.raises(InputError, match=r"^run: got 'too', which the sweep does not have\. Did you mean two\?"):
        sweep["too"]


def test_what_of_a_sweep_cannot_be_read_is_left_out_with_a_line(written, tmp_path):
    shutil.copytree(written, tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "summary.json").write_text("{")
    sweep = open_sweep(tmp_path)
    assert len(sweep) == 1
    (line,) = sweep.problems
    assert "bad: left out: summary.json cannot be read" in line
    assert "1 problem" in repr(sweep)
    shutil.rmtree(tmp_path / "good")
    with pytest.raises(InputError, match="without a run that can be read"):
        open_sweep(tmp_path)
    (tmp_path / "bad" / "summary.json").unlink()
    with pytest.raises(InputError, match="without a finished run in it"):
        open_sweep(tmp_path)


def test_comparisons_of_opened_runs_can_be_made_across_runs(written, many_written):
    one, other = open_run(written), open_run(many_written)
    crossed = compare(one.maps["heads"]["ap"], other.maps["heads"]["ap"])
    assert crossed.methods == ("ap_1", "ap_2")
    assert {"ap_1", "ap_2", "effect_ap_1", "difference"} <= set(crossed.to_frame().columns)
