"""The tutorial notebook: every cell runs in a kernel, and what it says is what is committed."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.ipynb"
VARIES = "varies"
"""The tag of a cell whose numbers a last bit can change: what a search tries next hangs on them."""


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(TUTORIAL, as_version=4)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook after all its cells have run, in order, in a folder of their own and with a home of their own."""
    folder = tmp_path_factory.mktemp("tutorial")
    notebook = nbformat.read(TUTORIAL, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
            patch.setenv(name, str(folder / name.lower()))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(TUTORIAL.parents[1]), prepend=":")
        where = {"metadata": {"path": str(folder)}}
        NotebookClient(notebook, timeout=600, coalesce_streams=True, resources=where).execute()
    return notebook, folder


def texts(cell):
    """What a cell prints and shows as plain text."""
    return [output.text if output.output_type == "stream" else output.data["text/plain"] for output in cell.outputs]


@pytest.mark.long
def test_every_cell_says_what_is_committed(committed, executed):
    notebook, _ = executed
    for before, now in zip(committed.cells, notebook.cells, strict=True):
        if now.cell_type == "code":
            assert not any(output.get("name") == "stderr" for output in now.outputs), now.source
            if VARIES not in now.metadata.get("tags", ()):
                assert texts(now) == texts(before), now.source


def test_maps_and_axes_are_shown_as_pictures(executed):
    shown = {cell.source.splitlines()[-1]: cell.outputs[-1].get("data", {}) for cell in executed[0].cells
             if cell.cell_type == "code" and cell.outputs}  # fmt: skip
    assert "<table" in shown["ap"]["text/html"]
    assert "<script" not in "".join(data.get("text/html", "") for data in shown.values())
    assert {line for line, data in shown.items() if "image/png" in data} == {"comparison.plot()", "curves.plot()"}


def test_a_run_in_a_notebook_leaves_the_files_of_a_command_and_nothing_else(executed):
    _, folder = executed
    names = {path.name for path in folder.iterdir()} - {"ipythondir", "jupyter_runtime_dir", "jupyter_data_dir"}
    assert names == {"runs"}
    run = folder / "runs" / "zero"
    assert {"summary.json", "heads.csv", "record.safetensors", ".hydra", "igap.log"} <= {p.name for p in run.iterdir()}
    assert list(run.glob("wandb/offline-run-*")), "tracked offline, as a command is"


def test_the_committed_notebook_is_small_whole_and_names_no_folder_of_a_machine(committed):
    text = TUTORIAL.read_text()
    assert len(text) < 400_000
    assert "/tmp/" not in text
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
