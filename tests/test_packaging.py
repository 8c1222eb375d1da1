"""What users install: a wheel that brings its configs, its model and its command, and works from any folder."""

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PACKAGED = (
    "output/dashboard/page.html",
    "output/dashboard/views.js",
    "replication/page.html",
    "conf/hydra/launcher/joblib.yaml",
    "inputs/tasks/greater-than.csv",
    "conf/prompts/greater-than.yaml",
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds the unpacked wheel and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("igap-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture
def igap(installed, tmp_path):
    """Runs a command of the wheel's igap from another folder; the checkout is not on its path."""

    def run(*arguments):
        code = (
            f"import sys; sys.path.insert(0, {str(installed)!r}); import igap.cli; "
            f"assert igap.cli.__file__.startswith({str(installed)!r}); sys.exit(igap.cli.main({list(arguments)!r}))"
        )
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        return subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    return run


def test_the_wheel_holds_configs_sweeps_and_the_model_and_no_tests(installed):
    for name in (
        "conf/config.yaml",
        "sweeps/baselines.yaml",
        "sweeps/search/search_mini.yaml",
        "models/ioi_mini/model.safetensors",
        "cli/run.py",
        "py.typed",
        *PACKAGED,
    ):
        assert (installed / "igap" / name).is_file(), name
    assert not list(installed.rglob("test_*.py"))
    (entry,) = installed.glob("igap-*.dist-info/entry_points.txt")
    assert "igap = igap.cli:main" in entry.read_text()
    (licence,) = installed.glob("igap-*.dist-info/licenses/LICENSE")
    assert licence.read_text() == (ROOT / "LICENSE").read_text()


def test_the_wheel_the_licence_and_the_citation_name_one_version_and_one_author():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert citation["authors"] == project["authors"]
    assert project["authors"][0]["name"] in (ROOT / "LICENSE").read_text()


def test_help_works_from_another_folder(igap):
    done = igap("run", "--help")
    assert done.returncode == 0, done.stderr
    assert "baseline=zero_input" in done.stdout


def test_a_tiny_run_works_from_another_folder(igap, checkpoint, tmp_path):
    done = igap(
        "run", "model=hf", f"model.name={checkpoint('gpt2')}", "prompts.min_gap=0", "tracking=disabled",
        "sites=heads", "curves.components=none", "explain=false", "plots=heads_scatter",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (summary,) = tmp_path.glob("runs/*/summary.json")
    assert json.loads(summary.read_text())["gap"] != 0


def test_sweeps_are_found_from_another_folder(igap):
    done = igap("sweep", "--help")
    assert done.returncode == 0, done.stderr
    assert "baselines" in done.stdout
