"""Runs of W&B: objects of its API's shape become what `finished` reads from disk. No server was asked."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import wandb
from helpers import finished_runs

from igap.errors import InputError
from igap.output.dashboard import command, site_maps, wandb_runs
from igap.storage import tables
from igap.storage.finished import read_run


@pytest.fixture
def server(monkeypatch):
    """A list: what wandb.Api().runs(...) gives."""
    runs = []
    monkeypatch.setattr(wandb, "login", lambda prompt: True)
    monkeypatch.setattr(wandb, "Api", lambda timeout: SimpleNamespace(runs=lambda path, lazy: runs))
    return runs


def logged(folder, state="finished", **changes):
    """A run as the API gives it, of what tracking logs from this folder."""
    summary = json.loads((folder / "summary.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    extra = {"_step": 0, "_wandb": {}, "plots/x": {"_type": "image-file"}}
    files = {}
    for file in folder.glob("*.csv"):
        frame = tables.read_csv(file, tables.TEXTS)
        table = json.dumps({"columns": list(frame.columns), "data": frame.astype(object).values.tolist()})
        path = f"media/table/tables/{file.stem}_0_abc.table.json"
        files[path] = SimpleNamespace(download=lambda root, table=table: io.StringIO(table))
        extra[f"tables/{file.stem}"] = {"path": path}
    return SimpleNamespace(
        name="monday/3",
        id="abc",
        state=state,
        config={**{k: v for k, v in config.items() if k != "tracking"}, "key": summary["key"]},
        summary_metrics={**summary, **extra, **changes},
        file=lambda name: files[name],
    )


def test_a_run_is_what_it_is_on_disk(server, written):
    server.append(logged(written))
    (run,), maps, troubles = wandb_runs.fetch_runs("me/igap")
    disk, _ = read_run(written)
    assert troubles == []
    assert run.folder == Path("me/igap/monday/3 (abc)")
    assert run.summary == disk.summary
    assert run.settings == {key: value for key, value in disk.settings.items() if not key.startswith("tracking.")}
    assert vars(maps[run.folder]["heads"]) == vars(site_maps.read(written)[0])


def test_they_stand_beside_those_on_disk(server, written, tmp_path, capsys):
    server.append(logged(written))
    command.compare_runs([written], project="me/igap", output=tmp_path)
    out = capsys.readouterr().out
    assert "2 finished runs" in out
    assert "No setting differs among the 2 runs" in out
    assert list(pd.read_csv(tmp_path / "compare.csv")["folder"]) == [str(written), "me/igap/monday/3 (abc)"]


def test_every_site_is_there_by_position_unless_wandb_cut_its_table(server, tmp_path):
    spans = ["=S1", "2 'Mary'", "-"]
    numbers = {"heads/n_components": 2 * 3 * 3, "resid_pre/n_components": 2 * 3 + 3}
    folder = finished_runs.make(tmp_path / "run", sites=["heads", "resid_pre"], spans=spans, summary=numbers)
    server.append(logged(folder))
    (run,), maps, troubles = wandb_runs.fetch_runs("me/igap")
    assert vars(maps[run.folder]["heads"]) == vars(site_maps.read(folder)[0])
    assert list(maps[run.folder]["heads"].columns) == spans
    assert troubles == [
        "me/igap/monday/3 (abc): its resid_pre cannot be read (tables/resid_pre: ValueError: W&B has 6 of its 9 rows; "
        "the run's folder has all)."
    ]


@pytest.mark.parametrize(
    ("changes", "trouble"),
    [
        ({"state": "crashed"}, "left out: crashed."),
        ({"key": {}}, "left out: no run of igap."),
        (
            {"schema": 9},
            "its schema is 9, this igap knows 1: its numbers are shown under their names, its settings are",
        ),
        ({"tables/heads": None}, "its heads cannot be read (tables/heads: TypeError"),
        ({"tables/heads": {"path": "media/table/../../x"}}, "its heads cannot be read (tables/heads: ValueError"),
    ],
)
def test_what_cannot_be_read_is_said(changes, trouble, server, written):
    server.append(logged(written, **changes))
    runs, _, troubles = wandb_runs.fetch_runs("me/igap")
    assert len(troubles) == 1
    assert troubles[0].startswith(f"me/igap/monday/3 (abc): {trouble}")
    assert [bool(run.settings) for run in runs] == (
        [] if "left out" in trouble else [False] if "schema" in trouble else [True]
    )


def test_an_empty_project_is_refused(server):
    with pytest.raises(InputError, match=r"^--wandb: got me/igap, in which there is no run"):
        wandb_runs.fetch_runs("me/igap")


def test_without_a_key_it_is_refused_and_asks_for_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(InputError, match=r"^--wandb: got me/igap, but W&B has no key .* or set WANDB_API_KEY\.$"):
        wandb_runs.fetch_runs("me/igap")


def test_a_server_that_does_not_answer_is_one_line(monkeypatch):
    def unreachable(timeout):
        raise wandb.errors.CommError("no\nanswer")

    monkeypatch.setattr(wandb, "login", lambda prompt: True)
    monkeypatch.setattr(wandb, "Api", unreachable)
    with pytest.raises(InputError, match=r"^--wandb: me/igap cannot be read \(CommError: no answer\)\. Check its name"):
        wandb_runs.fetch_runs("me/igap")


@pytest.mark.parametrize("gap", [4.0, None])
def test_empty_cells_are_read_as_wandb_writes_them(gap, server, tmp_path):
    """As NaN, which is no JSON: those of a class that few heads have, and all scores of a gap that is too small."""
    folder = finished_runs.make(tmp_path / "run", gap=gap)
    frame = pd.read_csv(folder / "heads.csv", dtype={"name": str}).assign(
        **{"class": [None, "name mover", *[None] * 4]}
    )
    frame.to_csv(folder / "heads.csv", index=False)
    server.append(logged(folder))
    (run,), maps, problems = wandb_runs.fetch_runs("me/igap")
    assert problems == []
    wanted, _ = site_maps.read(folder)
    found = maps[run.folder]["heads"]
    assert (found.unit, found.ig, found.ap) == (wanted.unit, wanted.ig, wanted.ap)
