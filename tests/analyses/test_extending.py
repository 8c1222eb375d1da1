"""docs/extending/analysis.md, as it stands there: its module, its YAML file, and one line of the registry."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from igap import cli, pipeline
from igap.analyses.registry import ANALYSES
from igap.cli.compose import compose_one
from igap.config import TEXTS
from igap.errors import InputError

PAGE = (Path(__file__).parents[2] / "docs" / "extending" / "analysis.md").read_text()


@pytest.fixture(scope="module")
def analysis(tmp_path_factory):
    """The analysis of the page's module."""
    file = tmp_path_factory.mktemp("module") / "disagreement.py"
    file.write_text(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1])
    spec = importlib.util.spec_from_file_location("disagreement", file)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "disagreement", module)
        spec.loader.exec_module(module)
    return module.DisagreementAnalysis()


@pytest.fixture
def config_dir(analysis, tmp_path, monkeypatch):
    """A folder with the page's YAML file, while the analysis is registered."""
    monkeypatch.setitem(ANALYSES, analysis.name, analysis)
    file = tmp_path / "conf" / "analyses" / "disagreement.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])
    return str(tmp_path / "conf")


def test_its_numbers_table_figure_and_sentence_are_in_the_run_and_in_wandb(config_dir, tmp_path, capsys):
    folder = tmp_path / "run"
    quick = ["ig.n_steps=2", "sites=heads", "explain=false", "curves.components=none", "device=cpu"]
    quick += ["plots=disagreement"]
    asked = ["analyses=disagreement", "analyses.disagreement.top=2"]
    code = cli.main(["run", "--config-dir", config_dir, *asked, *quick, f"hydra.run.dir={folder}"])
    said = capsys.readouterr()
    assert code == 0, said.err
    summary = json.loads((folder / "summary.json").read_text())
    table = pd.read_csv(folder / "disagreement.csv", dtype={"name": str})
    heads = pd.read_csv(folder / "heads.csv", dtype={"name": str}).set_index("name")
    farthest = heads["difference"].abs().sort_values(ascending=False)
    assert table["name"].tolist() == farthest.index[:2].tolist()
    assert summary["disagreement/largest"] == pytest.approx(farthest.iloc[0], abs=1e-12)
    assert (folder / "plots" / "disagreement.png").read_bytes()[:4] == b"\x89PNG"
    assert f"IG and AP disagree most about {', '.join(table['name'])}" in said.out
    assert json.loads((folder / "config.json").read_text())["analyses"] == {"disagreement": {"top": 2}}
    (offline,) = (folder / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", str(offline), "--json"]
    read = json.loads(subprocess.run([*command, "--summary"], capture_output=True, text=True, check=True).stdout)
    assert read["summary"]["disagreement/largest"] == pytest.approx(summary["disagreement/largest"])
    assert read["config"]["analyses"] == {"disagreement": {"top": 2}}
    records = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert {"tables/disagreement", "plots/disagreement"} <= set(re.findall(r"(?:tables|plots)/\w+", records))


def test_its_settings_are_in_the_key_and_a_run_without_it_has_the_key_it_had(config_dir):
    def key(*overrides):
        config = compose_one(overrides, config_dir=config_dir).config
        return config.key_of([[getattr(config.prompts, name) for name in TEXTS]], {})

    keys = [
        key(),
        key("analyses=disagreement"),
        key("analyses=disagreement", "analyses.disagreement.top=5"),
        key("analyses=disagreement", "seed=1"),
    ]
    assert len(set(keys)) == 4
    assert keys[0] == "5810b932691b"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["analyses.disagreement.top=0"], r"analyses\.disagreement\.top: got 0, wanted at least 1\. Try analyses\.dis"),
        (["+analyses.disagreement.bottom=1"], r"analyses\.disagreement\.bottom: got a key that no run has, wanted "),
        (
            ["+analyses.other={}"],
            r"analyses: got 'other', wanted one of both_directions, self_repair, direct_effect, edges, sets, mib",
        ),
        (["sites=neurons"], "sites: got neurons, wanted heads"),
    ],
)
def test_what_it_cannot_do_is_refused_before_the_model_loads(config_dir, overrides, message):
    config = compose_one(["analyses=disagreement", *overrides], config_dir=config_dir).config
    with pytest.raises(ValueError, match=message):
        pipeline.check(config)


def test_several_are_chosen_at_once_and_a_name_without_a_file_is_refused(config_dir):
    second = Path(config_dir, "analyses", "second.yaml")
    second.write_text("second:\n  size: 1.5\n")
    config = compose_one(["analyses=[disagreement,second]"], config_dir=config_dir).config
    assert config.analyses == {"disagreement": {"top": 3}, "second": {"size": 1.5}}
    with pytest.raises(
        InputError,
        match=r"^analyses: got 'third', wanted one of both_directions, direct_effect, disagreement, edges, mib, second",
    ):
        compose_one(["analyses=[disagreement,third]"], config_dir=config_dir)
    with pytest.raises(InputError, match=r"^baseline: got \['zero', 'mean'\], wanted one of "):
        compose_one(["baseline=[zero,mean]"], config_dir=config_dir)


def test_an_analysis_that_has_keys_of_its_own_has_no_settings_here():
    config = compose_one(["+analyses.ablation={}"]).config
    with pytest.raises(
        InputError,
        match=r"^analyses: got 'ablation', wanted one of both_directions, self_repair, direct_effect, edges, sets, m",
    ):
        pipeline.check(config)
