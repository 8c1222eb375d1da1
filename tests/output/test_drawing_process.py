"""The process that draws beside a sweep: each run's own pictures, in the order asked, and what became of them."""

import dataclasses
import os
import subprocess

import pytest
from helpers.forked import Forked

from igap.output import record
from igap.output.drawing_process import DrawingProcess
from igap.output.figures import figure_data

ONE = ["convergence_delta"]


@pytest.fixture(scope="module")
def process():
    """Forked; the last test starts an interpreter of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", Forked)
        process = DrawingProcess()
    with process:
        yield process


@pytest.fixture
def runs(result, tmp_path):
    """Folders of two runs that have a record each, and of one without."""
    folders = [tmp_path / name for name in ("first", "second", "none")]
    for folder in folders:
        (folder / "plots").mkdir(parents=True)
    data = figure_data(result)
    record.write(record.Record({}, data), folders[0], {})
    record.write(record.Record({}, dataclasses.replace(data, title="another run")), folders[1], {})
    return folders


def test_each_run_gets_the_pictures_it_would_have_had_here_and_answers_come_in_order(process, runs):
    first, second, none = runs
    for folder in (second, none, first):
        process.ask(folder, ONE)
    assert process.n_waiting == 3
    failures = [dict(process.answer(wait=True).failures) for _ in runs]
    assert process.n_waiting == 0
    assert [list(each) for each in failures] == [[], ["plots/record"], []]
    assert failures[1]["plots/record"].reason.startswith("record.safetensors: it cannot be read")
    assert process.answer(wait=False) is None
    assert not process.dead
    drawn = [(folder / "plots" / "convergence_delta.png").read_bytes() for folder in (first, second)]
    assert drawn[0] != drawn[1]
    for folder, picture in zip((first, second), drawn, strict=True):
        assert [path.name for path in folder.glob("plots/*")] == ["convergence_delta.png"]
        assert not record.draw(folder, frozenset(ONE)).failures
        assert (folder / "plots" / "convergence_delta.png").read_bytes() == picture


def test_it_gives_way_to_the_computation_beside_it(process, runs):
    process.ask(runs[0], ONE)
    assert process.answer(wait=True) is not None
    here = os.getpriority(os.PRIO_PROCESS, 0)
    assert os.getpriority(os.PRIO_PROCESS, process._process.pid) == min(here + 10, 19)


def test_a_picture_that_cannot_be_written_is_named_with_its_reason_and_story(process, runs):
    (runs[0] / "plots" / "convergence_delta.png").mkdir()
    process.ask(runs[0], [*ONE, "jaccard"])
    drawn = process.answer(wait=True)
    assert list(drawn.failures) == ["plots/convergence_delta"]
    assert "Is a directory" in drawn.failures["plots/convergence_delta"].reason
    assert "Traceback" in drawn.failures["plots/convergence_delta"].story
    assert drawn.seconds > 0
    assert (runs[0] / "plots" / "jaccard.png").is_file()


def test_the_process_ends_with_whoever_tells_it(runs):
    """Its input ends, as where that one was killed; it is then at its imports, or at a picture."""
    with DrawingProcess() as process:
        process.ask(runs[0], ONE)
        process._process.stdin.close()
        assert process._process.wait(timeout=600) == 0
        process.answer(wait=True)
        assert process.answer(wait=True) is None
        assert process.dead
        assert process.answer(wait=True) is None, "and does not wait for ever"
