"""`igap plot` draws what a run left out, and again, from its record."""

import shutil

import pytest

from igap import cli
from igap.output import disk


@pytest.fixture
def bare(result, tmp_path):
    """The folder of a run without pictures."""
    folder = tmp_path / "run"
    disk.prepare(folder)
    disk.write(
        result.__class__(**{**vars(result), "config": result.config.model_copy(update={"plots": "none"})}), folder
    )
    assert not list(folder.glob("plots/*"))
    return folder


def test_a_run_without_pictures_gets_those_that_it_would_have_had(bare, written, capsys):
    assert cli.main(["plot", str(bare.parent)]) == 0
    there = {path.name: path.read_bytes() for path in written.glob("plots/*.png")}
    assert {path.name: path.read_bytes() for path in bare.glob("plots/*.png")} == there
    assert sorted(capsys.readouterr().out.split()) == sorted(str(bare / "plots" / name) for name in there)


def test_only_the_pictures_named_are_drawn_those_of_an_analysis_together(bare, capsys):
    assert cli.main(["plot", str(bare), "--only", "jaccard explain"]) == 0
    drawn = {path.stem for path in bare.glob("plots/*.png")}
    assert drawn == {"jaccard", "explanation", "interactions"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "jacard"], "--only: got 'jacard', wanted all, none, or names of heads_heatmap"),
        (["--only", "none"], "--only: got 'none', wanted names of pictures"),
        (["--only"], "--only: got nothing, wanted a value. igap plot --help shows what it takes."),
        (["--only=ablation"], "--only: got 'ablation', of which none of the 1 runs has a picture."),
        (["--fast"], "option: got '--fast', which igap plot does not have, wanted RUN or one of --only, --help."),
        (["/nowhere"], "folder: got /nowhere, which is no folder"),
    ],
)
def test_a_wrong_argument_is_one_line(bare, arguments, said, capsys):
    assert cli.main(["plot", str(bare), *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_a_run_without_a_record_is_named_and_the_others_are_drawn(bare, capsys):
    older = shutil.copytree(bare, bare.with_name("older"))
    (older / "record.safetensors").unlink()
    assert cli.main(["plot", str(bare.parent), "--only", "jaccard"]) == 1
    told = capsys.readouterr()
    assert told.out.split() == [str(bare / "plots" / "jaccard.png")]
    assert f"igap: {older}: left out: record.safetensors: " in told.err


def test_a_picture_that_cannot_be_written_is_named_and_the_others_and_the_runs_inside_are_drawn(bare, capsys):
    inside = shutil.copytree(bare, bare / "second-pair")
    (bare / "plots" / "jaccard.png").mkdir()
    assert cli.main(["plot", str(bare), "--only", "jaccard convergence_delta"]) == 1
    told = capsys.readouterr()
    expected = [
        bare / "plots/convergence_delta.png",
        *(inside / f"plots/{n}.png" for n in ("convergence_delta", "jaccard")),
    ]
    assert sorted(told.out.split()) == sorted(map(str, expected))
    (line,) = told.err.splitlines()
    assert f"{bare}: plots/jaccard: " in line
    assert "Is a directory" in line
